"""Whether a worker has a batch in its hands: the one thing that no TorchServe API tells.

`pendingRequests` counts what waits and not what a worker is working on, so whoever ends the server
when the queue is empty loses up to a batch per worker. Each worker holds a shared lock on one file
while it answers; the system frees it if the worker dies.
"""

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "steno-busy.lock"


@contextmanager
def busy(folder: Path | None = None) -> Iterator[None]:
    """Say so while a batch is answered; `folder` is the server's temporary one by default."""
    with _lock_file(folder).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def is_busy(folder: Path) -> bool:
    """Tell whether any worker of the server whose temporary folder this is answers a batch."""
    with _lock_file(folder).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _lock_file(folder: Path | None) -> Path:
    return (folder or Path(tempfile.gettempdir())) / NAME
