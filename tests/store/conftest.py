"""One S3 server for all tests of the store; each test has a prefix of its own."""

import random
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store import ModelStore, Release, StoreConfig
from tests.s3_server import S3Server
from tests.store.faulty_proxy import FaultyProxy

BUCKET = "models"


@pytest.fixture(scope="package")
def server() -> Iterator[S3Server]:
    with S3Server() as running:
        running.create_bucket(BUCKET)
        yield running


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> StoreConfig:
    """An empty store on the S3 server; the environment holds its address and credentials."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    return StoreConfig(url=f"s3://{BUCKET}/{secrets.token_hex(6)}")


@pytest.fixture(params=["s3", "folder"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> StoreConfig:
    """An empty store of each kind."""
    if request.param == "s3":
        return request.getfixturevalue("s3")
    return StoreConfig(url=str(tmp_path / "store"))


@pytest.fixture
def store(config: StoreConfig) -> ModelStore:
    return ModelStore.open(config)


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.port) as running:
        yield running


@pytest.fixture
def make_archive(tmp_path: Path) -> Callable[..., Path]:
    """Write a file that passes for an archive; the same seed gives the same bytes."""

    def make(seed: int = 0, size: int = 100_000) -> Path:
        path = tmp_path / f"{seed}-{size}.mar"
        if not path.exists():  # another thread may be publishing it
            path.write_bytes(random.Random(seed).randbytes(size))
        return path

    return make


@pytest.fixture
def publish(make_archive: Callable[..., Path]) -> Callable[..., Release]:
    """Publish a version of a store, with an archive that is made from a seed."""

    def publish(
        store: ModelStore,
        version: str,
        seed: int = 0,
        *,
        size: int = 100_000,
        parent: str | None = None,
    ) -> Release:
        return store.publish(
            make_archive(seed, size),
            version=version,
            metrics={"systems": {"accurate": {"wer": 0.097}}},
            data_fingerprint="f00d",
            commit="40d53ea",
            parent=parent,
        )

    return publish
