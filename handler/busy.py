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
COLLEAGUES_NAME = "steno-colleagues.lock"


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


class Colleagues:
    """The server's other workers, for one that is at work itself.

    Each holds a shared lock on a second file, and is alone if it can get an exclusive one. A failed
    attempt gives the shared one up for a moment, in which another may take itself to be alone: no harm
    here, while for the first file, on which the end of the server depends, it would be.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = ((folder or Path(tempfile.gettempdir())) / COLLEAGUES_NAME).open("ab")

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Be at work oneself."""
        fcntl.flock(self._file, fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def are_at_work(self) -> bool:
        """Tell whether another worker is at work now, having joined; takes microseconds."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            fcntl.flock(self._file, fcntl.LOCK_SH)
        return False


def _lock_file(folder: Path | None) -> Path:
    return (folder or Path(tempfile.gettempdir())) / NAME
