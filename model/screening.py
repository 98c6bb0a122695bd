"""Files of strangers, read by a process of their own before FFmpeg reads them in one that others share.

A header of some hundred bytes can make FFmpeg fill gigabytes: a table of an mp4 that states millions of
samples and holds none, text in an ID3 tag that a compression of a thousand to one hides. No setting of
FFmpeg bounds that. So `Screen` has a small process without torch, which reads a file's headers and
packets, decoding nothing, and is killed when it takes too much memory or time.
"""

import io
import resource
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import av

from model.ffmpeg import open_container

# Beside the file itself. A recording with a cover of 38 MiB takes 80 MiB, two hours without one 17. The
# system has no limit for this (RLIMIT_RSS does nothing), and one of addresses would hide what it shall
# show: FFmpeg reads on without what there was no memory for.
MOST_MEMORY = 128 * 2**20
# Two hours of Opus, the most packets, take 2.3 s on a core of an Intel Xeon.
MOST_SECONDS = 30.0
LOOK_SECONDS = 0.002
_HEADER_BYTES = 8
_READY = b"."  # said by the process whenever it waits for a file


class Verdict(Enum):
    """What became of a file, as the byte that the process answers."""

    READ = b"r"
    """FFmpeg reads it, within the limits."""
    NOT_READ = b"n"
    """FFmpeg cannot open it."""
    TOO_MUCH = b""
    """It takes more memory or time than a recording does, or FFmpeg crashes: there is no answer."""


class ScreeningError(RuntimeError):
    """The process that screens does not run."""


class Screen:
    """Screens one file at a time, from any thread; its process ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = _start()

    def look(self, file: BinaryIO) -> Verdict:
        """Screen a file, from its start to its end.

        Raises:
            ScreeningError: the process does not run.
        """
        file.seek(0)
        content = file.read()
        with self._lock:
            if self._process.poll() is not None:
                self._process = _start()
            verdict = Verdict.TOO_MUCH
            try:
                verdict = self._ask(content)
            finally:
                if verdict is Verdict.TOO_MUCH:
                    self.close()
            return verdict

    def close(self) -> None:
        """End the process; the next file starts another."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, content: bytes) -> Verdict:
        given, answered = self._process.stdin, self._process.stdout
        assert given is not None and answered is not None
        if answered.read(1) != _READY:
            raise ScreeningError(
                "the process that screens recordings ends at once; its errors say why"
            )
        before, start = _held(self._process.pid), time.monotonic()
        with suppress(BrokenPipeError):  # then it does not answer, either
            given.write(len(content).to_bytes(_HEADER_BYTES, "big"))
            given.write(content)
            given.flush()
        while not select.select([answered], [], [], LOOK_SECONDS)[0]:
            taken = _held(self._process.pid) - before - len(content)
            if taken > MOST_MEMORY or time.monotonic() - start > MOST_SECONDS:
                return Verdict.TOO_MUCH
        return Verdict(answered.read(1))


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "model.screening"],
        cwd=Path(__file__).resolve().parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _held(process: int) -> int:
    """Bytes of memory that a process holds; 0 where the system does not tell, or it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def main() -> None:
    """Answer each file on stdin, after its length, with one byte on stdout."""
    given, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(_READY)
    answers.flush()
    while len(header := given.read(_HEADER_BYTES)) == _HEADER_BYTES:
        verdict = _read(given.read(int.from_bytes(header, "big")))
        answers.write(verdict.value + _READY)
        answers.flush()


def _read(content: bytes) -> Verdict:
    try:
        container = open_container(io.BytesIO(content))
    except av.FFmpegError:
        return Verdict.NOT_READ
    # Damaged further on, as who decodes it will find; or PyAV, where a stream began in mid-file.
    with container, suppress(av.FFmpegError, IndexError):
        for stream in container.streams.audio[:1]:
            for _ in container.demux(stream):
                pass
    return Verdict.READ


if __name__ == "__main__":
    main()
