"""Processes that a test starts, and that are killed with it."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil


@contextmanager
def started(*commands: Sequence[str], **options: Any) -> Iterator[list["subprocess.Popen[Any]"]]:
    """Start commands with `subprocess.Popen`'s options; those that still run are killed at the end.

    Their children too, which a kill of torchrun or Locust does not reach: they would slow and disturb
    all later tests of a suite in which this one failed.
    """
    processes: list[subprocess.Popen[Any]] = []
    try:
        processes.extend(subprocess.Popen(command, **options) for command in commands)
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                family = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                for child in family:
                    with suppress(psutil.NoSuchProcess):
                        child.kill()
            process.wait()
