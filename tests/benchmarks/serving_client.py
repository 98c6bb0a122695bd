"""Callers of a local TorchServe, for the benchmark of serving: closed loop, and fixed arrivals."""

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import requests

from handler.server import TorchServe

TIMEOUT = 900.0
READY_SECONDS = 300.0


@dataclass(frozen=True)
class Calls:
    """What callers saw: texts and seconds in the order of the files, and the time for all."""

    texts: list[str]
    latency: list[float]
    seconds: float


class Client:
    """Sends WAV files as raw bodies; each thread has a connection of its own."""

    def __init__(self, server: TorchServe) -> None:
        self._url = server.predictions_url
        self._headers = {
            **server.authorization,
            "Content-Type": "application/octet-stream",
            "X-Steno-Response-Format": "text",
        }
        self._threads = threading.local()

    def call(self, content: bytes) -> tuple[str, float]:
        """One request: its text, and its seconds. Raises requests.HTTPError when it is refused."""
        if not hasattr(self._threads, "session"):
            self._threads.session = requests.Session()
        started = time.perf_counter()
        answer = self._threads.session.post(
            self._url, data=content, headers=self._headers, timeout=TIMEOUT
        )
        answer.raise_for_status()
        return answer.text.strip(), time.perf_counter() - started

    def closed_loop(self, contents: Sequence[bytes], callers: int) -> Calls:
        """All files, by so many callers who each wait for their answer."""
        started = time.perf_counter()
        with ThreadPoolExecutor(callers) as pool:
            found = list(pool.map(self.call, contents))
        seconds = time.perf_counter() - started
        return Calls([text for text, _ in found], [taken for _, taken in found], seconds)

    def arrivals(self, contents: Sequence[bytes], rate: float, seed: int) -> list[float]:
        """Seconds that each file takes from when it is due, with Poisson arrivals of a rate."""
        rng = random.Random(seed)

        def send(content: bytes, due: float) -> float:
            self.call(content)
            return time.perf_counter() - due

        due = time.perf_counter()
        with ThreadPoolExecutor(len(contents)) as pool:
            sent = []
            for content in contents:
                due += rng.expovariate(rate)
                time.sleep(max(0.0, due - time.perf_counter()))
                sent.append(pool.submit(send, content, due))
            return [future.result() for future in sent]


def wait_for_all_workers(server: TorchServe) -> int:
    """Wait until every worker is READY; returns how many there are.

    Raises:
        TimeoutError: after READY_SECONDS.
    """
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        workers = server.workers()
        if workers and all(worker["status"] == "READY" for worker in workers):
            return len(workers)
        time.sleep(0.5)
    raise TimeoutError(f"not all workers were READY after {READY_SECONDS:.0f} s")
