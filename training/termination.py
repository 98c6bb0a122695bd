"""SIGTERM as a wish that is granted at the next good moment."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn, Self


class Termination:
    """A context in which SIGTERM ends nothing, but is remembered as `asked`.

    Off the main thread, where Python allows no handlers, SIGTERM works as ever.

    Args:
        then: called when the signal comes.
    """

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.asked = False
        self._then = then

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._former)

    def leave(self, where: str) -> NoReturn:
        """End the process as SIGTERM would have."""
        print(f"stopped by SIGTERM {where}", flush=True)
        raise SystemExit(128 + signal.SIGTERM)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._then()
