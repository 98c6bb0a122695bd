"""An archive with a tiny network for the tests that load a real TorchServe."""

from pathlib import Path

import pytest

from tests.random_checkpoint import make_random_checkpoint
from training.package import build_package


@pytest.fixture(scope="session")
def tiny_model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build_package(make_random_checkpoint(folder / "checkpoint"), folder / "store")
    return folder / "store"
