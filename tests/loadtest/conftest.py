"""An archive with a tiny network for the tests that load a real TorchServe."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.random_checkpoint import make_random_checkpoint
from training.package import build_package


@pytest.fixture(scope="session")
def tiny_model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build_package(make_random_checkpoint(folder / "checkpoint"), folder / "store")
    return folder / "store"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
