"""An archive for the tests that load a real TorchServe, and a server that says nothing."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.random_checkpoint import SHIPPED
from training.package import build_package


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shipped model: random weights would fail with every answer."""
    store = tmp_path_factory.mktemp("store")
    build_package(SHIPPED, store)
    return store


@pytest.fixture
def silent_server() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
