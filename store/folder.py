"""Objects in a folder, for one machine or a volume that several pods share."""

import fcntl
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from store.errors import Conflict, NotFound
from store.objects import CHUNK_BYTES, Document, Objects, Stat, check_key, sha256_of

LOCK = ".lock"


class FolderObjects(Objects):
    """Keys are paths below a folder, which is made when something is first written.

    Writers take turns by a lock on one file of the folder; the system frees it when its holder
    dies. A volume that several nodes share must support such locks (flock), as NFS does.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def location(self, key: str) -> str:
        """See Objects."""
        return str(self.folder / key)

    def stats(self, prefix: str = "") -> dict[str, Stat]:
        """See Objects."""
        found = {}
        for path in self.folder.rglob("*"):
            key = path.relative_to(self.folder).as_posix()
            # The lock and unfinished files begin with a dot.
            if not path.name.startswith(".") and key.startswith(prefix) and path.is_file():
                found[key] = _stat(path.stat())
        return dict(sorted(found.items()))

    def stat(self, key: str) -> Stat:
        """See Objects."""
        with self._open(key) as file:
            return _stat(os.fstat(file.fileno()))

    def read(self, key: str) -> Document:
        """See Objects."""
        with self._open(key) as file:
            data = file.read()
        return Document(data, hashlib.sha256(data).hexdigest())

    def stream(self, key: str, stat: Stat, start: int = 0) -> Iterator[bytes]:
        """See Objects."""
        with self._open(key) as file:
            if _stat(os.fstat(file.fileno())) != stat:
                raise Conflict(f"{self.location(key)} was replaced while it was read; try again")
            file.seek(start)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def swap(self, key: str, data: bytes, expected: str | None) -> None:
        """See Objects."""
        self._write(key, io.BytesIO(data), lambda: self._tag(key) == expected)

    def upload(self, path: Path, key: str, *, create: bool = False) -> str:
        """See Objects."""
        sha256 = sha256_of(path)
        with path.open("rb") as source:
            self._write(key, source, lambda: not (create and (self.folder / key).exists()))
        return sha256

    def _open(self, key: str) -> BinaryIO:
        try:
            return (self.folder / check_key(key)).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NotFound(f"there is no {self.location(key)}") from None

    def _tag(self, key: str) -> str | None:
        try:
            return self.read(key).tag
        except NotFound:
            return None

    def _write(self, key: str, source: BinaryIO, may_write: Callable[[], bool]) -> None:
        target = self.folder / check_key(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{secrets.token_hex(12)}.partial")
        try:
            with partial.open("xb") as file:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
                file.flush()
                os.fsync(file.fileno())
            with self._locked():
                if not may_write():
                    raise Conflict(f"{self.location(key)} was written by somebody else")
                partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / LOCK).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _stat(found: os.stat_result) -> Stat:
    return Stat(found.st_size, f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}")
