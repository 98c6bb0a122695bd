"""The processes of one serving pod on this machine, started as the chart starts them."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests
import yaml

from handler.pod_key import KEY
from handler.server import Ports
from store import ModelStore, StoreConfig
from training.package import ROOT

WAIT_SECONDS = 120.0


def publish(store: Path, archive: Path, version: str) -> ModelStore:
    """Put an archive into a new store as `version`, and into production."""
    models = ModelStore.open(StoreConfig(url=str(store)))
    models.publish(archive, version=version, metrics={}, data_fingerprint="f00d", commit="40d53ea")
    models.promote(version, expected=None)
    return models


def wait_until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"not within {WAIT_SECONDS:.0f} s: {what}"
        time.sleep(0.1)


class Pod:
    """Init container, sidecar and server over one temporary folder; leaving ends them all.

    Args:
        store: of the model, a folder.
        changes: of the archive's model-config.yaml; a token file is always among them.
    """

    def __init__(self, store: Path, changes: Mapping[str, Any] | None = None) -> None:
        self.ports = Ports.free()
        self.exporter_port = Ports.free().inference
        self.token = secrets.token_hex(16)
        self._store = store
        self._changes = dict(changes or {})
        self._processes: list[subprocess.Popen[bytes]] = []
        # Not pytest's: its path is too long for a socket's 107 characters.
        self._folder = tempfile.TemporaryDirectory(prefix="pod-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self.temporary = self.folder / "server"
        self.key = self.folder / "models" / KEY

    @property
    def predictions_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.inference}/predictions/asr"

    @property
    def exporter_url(self) -> str:
        return f"http://127.0.0.1:{self.exporter_port}"

    @property
    def management_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.management}"

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._folder.cleanup()

    def fetch(self) -> None:
        """The init container."""
        tokens = self.folder / "tokens"
        tokens.write_text(f"{self.token}\n")
        handler = {"token_file": str(tokens), "warmup_seconds": [0.5]}
        changes = {**self._changes, "handler": {**handler, **self._changes.get("handler", {})}}
        (self.folder / "settings.yaml").write_text(yaml.safe_dump(changes))
        arguments = ["--output", str(self.folder / "models")]
        arguments += ["--settings", str(self.folder / "settings.yaml")]
        assert self._run("handler.fetch", *arguments).wait() == 0, self.log()

    def start_exporter(self) -> None:
        """The sidecar; returns when it answers."""
        self._run(
            *("handler.exporter", "--host", "127.0.0.1", "--port", str(self.exporter_port)),
            *("--management", self.management_url, "--interval", "0.2"),
            *("--served", str(self.folder / "models" / "served.json"), "--key", str(self.key)),
        )

        def answers() -> bool:
            with contextlib.suppress(requests.ConnectionError):
                return requests.get(f"{self.exporter_url}/metrics", timeout=10).ok
            return False

        wait_until(answers, "the exporter answers")

    def start_server(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The main container; returns at once."""
        return self._run(
            *("handler.launch", "--model-store", str(self.folder / "models")),
            *("--config", str(ROOT / "handler"), "--folder", str(self.temporary)),
            *("--host", "127.0.0.1", "--inference-port", str(self.ports.inference)),
            *("--management-port", str(self.ports.management)),
            *("--metrics-port", str(self.ports.metrics)),
            *("--grpc-inference-port", str(self.ports.grpc_inference)),
            *("--grpc-management-port", str(self.ports.grpc_management)),
            *("--exporter", self.exporter_url),
            *arguments,
        )

    def start_drain(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The preStop hook; returns at once."""
        return self._run(
            *("handler.drain", "--folder", str(self.temporary)),
            *("--management", self.management_url),
            *("--exporter", self.exporter_url, "--key", str(self.key)),
            *arguments,
        )

    def ready(self) -> bool:
        """The readiness probe."""
        return requests.get(f"{self.exporter_url}/ready", timeout=10).ok

    def alive(self) -> bool:
        """The liveness probe."""
        with contextlib.suppress(requests.ConnectionError):
            url = f"http://127.0.0.1:{self.ports.inference}/ping"
            return requests.get(url, timeout=10).ok
        return False

    def metrics(self) -> str:
        """What Prometheus scrapes from the pod."""
        server = requests.get(f"http://127.0.0.1:{self.ports.metrics}/metrics", timeout=10).text
        return server + requests.get(f"{self.exporter_url}/metrics", timeout=10).text

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _run(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env={**os.environ, "STENO_STORE": str(self._store)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # `tini -g` signals the whole group, too
            )
        self._processes.append(process)
        return process
