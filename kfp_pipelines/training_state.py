"""A training run that outlives its pod: its folder is kept in the store while it runs.

After a preemption the next attempt, on whatever machine, fetches what was kept and goes on from there.
"""

import os
import shutil
import tarfile
import tempfile
import threading
from pathlib import Path

from store import NotFound, Objects, StoreError
from training.state import STATE

# What a resumed run needs: the state, the log, and the checkpoints, of which `best` may be old.
KEPT = (STATE, "log.jsonl", "config.yaml", "best", "last")
FINISHED = "finished"


class KeptRun:
    """The folder of a training run, and its copy in the store under one key.

    The copy is one tar: it appears whole or not at all, so that state and checkpoints always belong
    together. Copies are sent in the background; while one is under way, the next waits, and of those
    that wait only the newest is sent.

    Args:
        objects: the store's.
        key: names everything that the run depends on, so that no other run uses it.
        folder: of the run, on this machine.
    """

    def __init__(self, objects: Objects, key: str, folder: Path) -> None:
        self.objects, self.key, self.folder = objects, key, folder
        self._waiting: Path | None = None
        self._ended = False
        self._wake = threading.Condition()
        self._sender = threading.Thread(target=self._send_all, daemon=True)
        self._failed: StoreError | OSError | None = None

    @property
    def finished(self) -> bool:
        """Whether the run in the folder has nothing left to do."""
        return (self.folder / FINISHED).is_file()

    def fetch(self) -> bool:
        """Bring the copy to the folder, in place of what is there; False if there is none."""
        with tempfile.TemporaryDirectory(dir=self._beside()) as temporary:
            tar = Path(temporary) / "run.tar"
            try:
                self.objects.download(self.key, tar)
            except NotFound:
                return False
            shutil.rmtree(self.folder, ignore_errors=True)
            with tarfile.open(tar) as archive:
                archive.extractall(self.folder, filter="data")
        return True

    def start(self) -> None:
        """Begin to send what `save` is given."""
        self._sender.start()

    def save(self, folder: Path) -> None:
        """Keep the run as it is now: a snapshot is taken at once and sent in the background.

        A failure to send is told, and the training goes on: the next snapshot may get through.
        """
        snapshot = self._snapshot(folder)
        with self._wake:
            superseded, self._waiting = self._waiting, snapshot
            self._wake.notify_all()
        if superseded is not None:
            shutil.rmtree(superseded)

    def stop(self) -> None:
        """Return when the newest snapshot is in the store. Raises what kept it from there."""
        with self._wake:
            self._ended = True
            self._wake.notify_all()
        self._sender.join()
        if self._failed is not None:
            raise self._failed

    def finish(self) -> None:
        """Mark the run as finished, here and in the store."""
        (self.folder / FINISHED).touch()
        self._send(self._snapshot(self.folder))

    def _snapshot(self, folder: Path) -> Path:
        """Hard links to the run's files: quick, and unmoved by what replaces them later."""
        snapshot = Path(tempfile.mkdtemp(prefix="snapshot-", dir=self._beside()))
        for name in (*KEPT, FINISHED):
            source = folder / name
            if source.is_dir():
                shutil.copytree(source, snapshot / name, copy_function=os.link)
            elif name == "log.jsonl" and source.exists():
                shutil.copyfile(source, snapshot / name)  # it grows in place
            elif source.exists():
                os.link(source, snapshot / name)
        return snapshot

    def _send_all(self) -> None:
        while True:
            with self._wake:
                while self._waiting is None and not self._ended:
                    self._wake.wait()
                snapshot, self._waiting = self._waiting, None
            if snapshot is None:
                return
            try:
                self._send(snapshot)
                self._failed = None
            except (StoreError, OSError) as error:
                self._failed = error
                print(f"the state could not be kept, the training goes on: {error}", flush=True)

    def _send(self, snapshot: Path) -> None:
        try:
            with tempfile.TemporaryDirectory(dir=self._beside()) as temporary:
                tar = Path(temporary) / "run.tar"
                with tarfile.open(tar, "w") as archive:
                    for path in sorted(snapshot.iterdir()):
                        archive.add(path, path.name)
                self.objects.upload(tar, self.key)
        finally:
            shutil.rmtree(snapshot)

    def _beside(self) -> Path:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return self.folder.parent
