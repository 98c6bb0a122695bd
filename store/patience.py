"""Waiting for a store that is busy or away for minutes, where hours of work would be lost."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from store.errors import Unavailable

# What a busy bucket takes to split, and a server to be moved to another node.
PATIENCE_SECONDS = 900.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0

Answer = TypeVar("Answer")


def patiently(ask: Callable[[], Answer], seconds: float = PATIENCE_SECONDS) -> Answer:
    """Ask the store, and ask again with growing pauses while it is Unavailable.

    Args:
        ask: a question to the store, or an upload; it may be done twice.
        seconds: after so long the error is let through.
    """
    deadline = time.monotonic() + seconds
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return ask()
        except Unavailable:
            if time.monotonic() + pause > deadline:
                raise
        # By chance shorter, so that threads that were refused together do not come back together.
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
