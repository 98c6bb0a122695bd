"""One archive for all end-to-end tests, and one real TorchServe for the tests of a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from handler.server import TorchServe
from tests.random_checkpoint import SHIPPED
from training.package import ROOT, build_package

# The first request waits this long for others, so that requests sent together are one batch even
# on a busy machine; a full batch waits for nobody.
BATCH_DELAY_MS = 1000


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an archive that differs from the released one in its batch delay alone."""
    folder = tmp_path_factory.mktemp("store")
    settings = yaml.safe_load((ROOT / "handler" / "model-config.yaml").read_text())
    settings["maxBatchDelay"] = BATCH_DELAY_MS
    (folder / "model-config.yaml").write_text(yaml.safe_dump(settings))
    build_package(SHIPPED, folder, model_config=folder / "model-config.yaml")
    return folder


@pytest.fixture(scope="module")
def server(model_store: Path) -> Iterator[TorchServe]:
    with TorchServe(model_store) as running:
        yield running
