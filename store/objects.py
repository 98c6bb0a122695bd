"""Objects under keys: what S3 and a folder have in common."""

import fcntl
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from store.errors import Corrupted, StoreError

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Stat:
    """An object as it is now.

    Attributes:
        size: in bytes.
        tag: changes whenever the object does (S3's ETag).
        sha256: in hexadecimal, where the store noted it at the upload.
    """

    size: int
    tag: str
    sha256: str | None = None


@dataclass(frozen=True)
class Document:
    """A small object, and the tag that `Objects.swap` takes to replace just this state of it."""

    data: bytes
    tag: str


class Objects(ABC):
    """Objects under keys such as `checkpoints/run-7/state.pt`.

    An object appears whole or not at all. Every method raises StoreError's kinds: NotFound,
    Conflict, Denied, Unavailable, Corrupted. A key that is absolute, has `..` in it or a part that
    begins with a dot is a plain StoreError. Local files raise OSError as `open` does.
    """

    @abstractmethod
    def location(self, key: str) -> str:
        """Return the full name of a key, for messages."""

    @abstractmethod
    def stats(self, prefix: str = "") -> dict[str, Stat]:
        """Return the objects whose keys begin with `prefix`, in the order of the keys.

        SHA-256s are not among what is told: S3 does not list them.
        """

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with `prefix`, sorted."""
        return [*self.stats(prefix)]

    @abstractmethod
    def stat(self, key: str) -> Stat:
        """Return size and tag of an object."""

    @abstractmethod
    def read(self, key: str) -> Document:
        """Return a whole object that fits into memory."""

    @abstractmethod
    def stream(self, key: str, stat: Stat, start: int = 0) -> Iterator[bytes]:
        """Yield an object's bytes from offset `start`.

        Raises:
            Conflict: it is no longer `stat`.
            Corrupted: the whole object has not the checksum that came with it (S3).
        """

    @abstractmethod
    def swap(self, key: str, data: bytes, expected: str | None) -> None:
        """Write a small object if its tag is `expected`; None: if there is none. Else Conflict.

        Among any number of writers, one wins. `data` must differ from what any other writer could
        write, by a random identifier in it: that is how a write whose answer was lost is told from
        another's, and how a state that comes back is told from the former.
        """

    @abstractmethod
    def upload(self, path: Path, key: str, *, create: bool = False) -> str:
        """Store a file and return its SHA-256; with `create`, Conflict if there is one already."""

    def download(
        self, key: str, path: Path, *, sha256: str | None = None, stat: Stat | None = None
    ) -> None:
        """Fetch an object to `path`, which changes only when everything is there and verified.

        What a former, interrupted call brought is gone on with. The bytes are compared with
        `sha256`, else with the digest that the upload noted (S3), which `stat` has unless it is of a
        list, and with the checksum that the server (S3) sends with a whole object; if they differ, they
        are removed. Processes that fetch the same to the same place wait for each other.

        Args:
            stat: what is wanted, where it is known already: that and nothing that replaced it.

        Raises:
            Conflict: the object is not `stat` any more.
            Corrupted: size or SHA-256 is wrong.
        """
        stat = stat or self.stat(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # As a hash, since the name itself may have all the length that a file system takes.
        state = hashlib.sha256(f"{path.name}\n{stat.tag}".encode()).hexdigest()[:24]
        partial = path.with_name(f".{state}.partial")
        with _locked(partial) as file:
            try:
                for chunk in self.stream(key, stat, start=file.seek(0, os.SEEK_END)):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                self._verify(key, partial, stat.size, sha256 or stat.sha256)
            except Corrupted:
                partial.unlink()
                raise
            partial.replace(path)

    def _verify(self, key: str, path: Path, size: int, sha256: str | None) -> None:
        if (arrived := path.stat().st_size) != size:
            raise Corrupted(
                f"{self.location(key)} came as {arrived} bytes and not {size}; what was fetched "
                "was removed"
            )
        if sha256 is not None and (found := sha256_of(path)) != sha256:
            raise Corrupted(
                f"{self.location(key)} has the SHA-256 {found} and not {sha256}; what was fetched "
                "was removed. If a second try ends the same, the stored object is damaged"
            )


def check_key(key: str) -> str:
    """Return `key` if it is a clean relative path; StoreError if not."""
    parts = PurePosixPath(key).parts
    if not parts or "/".join(parts) != key or any(part.startswith(".") for part in parts):
        raise StoreError(f"{key!r} is no key; one looks like models/asr/v7/asr.mar")
    return key


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises OSError as `open` does."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(partial: Path) -> Iterator[BinaryIO]:
    """Open a file for reading and appending that no other process has open in this way."""
    while True:
        with partial.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_named(file, partial):
                yield file
                return


def _is_named(file: BinaryIO, path: Path) -> bool:
    """Tell whether `path` still leads to this file: whoever had the lock may have moved it away."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
