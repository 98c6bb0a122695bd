"""Files that are either there whole or not there at all, and their places from a folder."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that takes `path`'s place when the block ends without an exception.

    The bytes reach the disk before the name does, so neither a killed process nor a power cut
    leaves half a file under `path`; until then a former file stays as it was.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    # `open` gives the usual permissions, where tempfile's 0600 would shut out other users.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all. Raises OSError as `open` does."""
    with atomic_writer(path) as file:
        file.write(text.encode("utf-8"))


def relative(path: Path, folder: Path) -> str:
    """The way from `folder` to `path`, as manifests write it."""
    return Path(os.path.relpath(path, folder)).as_posix()
