"""A real S3 server for all tests of the pipeline; each test has a prefix of its own."""

import json
import secrets
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kfp_pipelines.rollout import PROBE
from store import ModelStore, StoreConfig
from tests.s3_server import S3Server

BUCKET = "steno"
METRICS = {
    "data_fingerprint": "f00d",
    "systems": {
        "accurate": {
            "wer": {"rate": 0.1, "low": 0.08, "high": 0.12},
            "cer": {"rate": 0.04},
            "rtfx": 20.0,
        }
    },
    "utterances": 100,
    "speakers": 10,
    "seconds": 600.0,
    "normalizer": "a normalizer",
}


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
    return StoreConfig(url=f"s3://{BUCKET}/{secrets.token_hex(6)}")


@pytest.fixture
def store(tmp_path: Path) -> StoreConfig:
    """An empty store in a folder."""
    return StoreConfig(url=str(tmp_path / "store"))


@pytest.fixture
def models(store: StoreConfig, tmp_path: Path) -> ModelStore:
    """A store with v1 in production, and v2."""
    found = ModelStore.open(store)
    for version in ("v1", "v2"):
        archive = tmp_path / f"{version}.mar"
        archive.write_bytes(version.encode())
        found.publish(
            archive, version=version, metrics={}, data_fingerprint="f00d", commit="40d53ea"
        )
    found.promote("v1", expected=None)
    return found


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """What the step `evaluate` leaves, as far as later steps look at it."""
    folder = tmp_path / "evaluation"
    (folder / "candidate").mkdir(parents=True)
    (folder / "candidate" / "metrics.json").write_text(json.dumps(METRICS))
    probe = folder / "probe"
    probe.mkdir()
    (probe / "clip.wav").write_bytes(b"RIFF")
    (probe / PROBE).write_text(
        json.dumps({"recording": "clip.wav", "text": "Please stop the recording now."})
    )
    return folder


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[bytes]]]:
    """An address that takes what is posted, and the bodies that came."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hooks/secret", received
    server.shutdown()
    server.server_close()
    thread.join()
