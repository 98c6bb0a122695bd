"""A serving release on this machine, which follows the production pointer as one on a cluster does.

    python -m kfp_pipelines.local_serving --store s3://bucket/prefix --status serving.json

It fetches what the pointer names, starts a TorchServe with it, and only when that is ready stops the
one before: a version that does not start takes nothing away. What it does stands in the status file.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from handler.server import ServerError, TorchServe
from kfp_pipelines.rollout import Endpoint, Serving, ServingError
from store import ModelStore, StoreConfig, StoreError
from training.files import write_text

POLL_SECONDS = 0.5
STOP_SECONDS = 60.0


class Status(BaseModel):
    """What the release does now.

    Attributes:
        move: identifies the move of the pointer that it has dealt with.
        serves: the version that answers.
        problem: why that is not the one that the pointer names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["waiting", "serving", "failed"] = "waiting"
    wanted: str | None = None
    serves: str | None = None
    move: str | None = None
    problem: str | None = None
    url: str | None = None
    token: str | None = None


@dataclass
class LocalServing(Serving):
    """The release whose status file this is.

    Attributes:
        status: the file.
        store: whose pointer it follows.
        timeout: seconds that a version may take until it is ready.
    """

    status: Path
    store: ModelStore
    timeout: float = 300.0

    def require_pods(self) -> None:
        """See Serving; it has one server, always."""

    def take_up(self, version: str) -> Endpoint:
        """Wait until the release has dealt with the pointer as it is now."""
        pointer = self.store.production()
        if pointer is None or pointer.version != version:
            raise ServingError(f"the pointer does not name {version}")
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                found = Status.model_validate_json(self.status.read_text(encoding="utf-8"))
                if found.move == pointer.id:
                    if found.state == "failed" or found.url is None:
                        raise ServingError(found.problem or "the release does not say why")
                    return Endpoint(found.url, {"Authorization": f"Bearer {found.token}"})
            time.sleep(POLL_SECONDS)
        raise ServingError(f"the local release did not take up {version} in {self.timeout:.0f} s")


@contextmanager
def local_release(store: StoreConfig, folder: Path) -> Iterator[LocalServing]:
    """Run a local release for the length of a block."""
    status = folder / "serving.json"
    status.unlink(missing_ok=True)
    command = [sys.executable, "-m", "kfp_pipelines.local_serving"]
    with (folder / "serving.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--store", store.url, "--status", str(status)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield LocalServing(status, ModelStore.open(store))
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Release:
    """The servers, and what is told of them."""

    def __init__(self, store: ModelStore, status: Path, folder: Path) -> None:
        self.store, self.status, self.folder = store, status, folder
        self.server: TorchServe | None = None
        self.told = Status()
        self._tell(self.told)

    def follow(self) -> None:
        """Look at the pointer once, and take up what it names."""
        try:
            pointer = self.store.production()
        except StoreError as error:  # it may come back, and the server that runs needs it not
            print(f"the pointer cannot be read: {error}", flush=True)
            return
        if pointer is None or pointer.id == self.told.move:
            return
        if pointer.version == self.told.serves and self.server is not None:
            self._tell(self._serving(self.server, pointer.version, pointer.id))
            return
        try:
            server = self._start(pointer.version)
        except (ServerError, StoreError, OSError) as error:
            self._tell(
                self.told.model_copy(
                    update={
                        "state": "failed",
                        "wanted": pointer.version,
                        "move": pointer.id,
                        "problem": str(error),
                    }
                )
            )
            return
        before, self.server = self.server, server
        self._tell(self._serving(server, pointer.version, pointer.id))
        if before is not None:
            before.stop()

    def stop(self) -> None:
        """Stop what runs."""
        if self.server is not None:
            self.server.stop()

    def _start(self, version: str) -> TorchServe:
        models = self.folder / version
        self.store.fetch(version, models)
        server = TorchServe(models)
        return server.__enter__()

    def _serving(self, server: TorchServe, version: str, move: str) -> Status:
        return Status(
            state="serving",
            wanted=version,
            serves=version,
            move=move,
            url=server.predictions_url,
            token=server.inference_token,
        )

    def _tell(self, status: Status) -> None:
        self.told = status
        write_text(self.status, status.model_dump_json(indent=2) + "\n")
        self.status.chmod(0o600)  # it holds the token
        print(status.model_dump_json(exclude={"token"}), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m kfp_pipelines.local_serving")
    parser.add_argument("--store", required=True, help="s3://bucket/prefix, or a folder")
    parser.add_argument("--status", type=Path, required=True, help="file that tells what it does")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    store = ModelStore.open(StoreConfig(url=options.store))
    parent = os.getppid()
    with tempfile.TemporaryDirectory(prefix="steno-release-") as folder:
        release = _Release(store, options.status, Path(folder))
        try:
            while os.getppid() == parent:  # nobody is left to serve for once it has died
                release.follow()
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            pass
        finally:
            release.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
