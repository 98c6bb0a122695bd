"""Callers of a local TorchServe, for the benchmarks of serving: closed loop, and fixed arrivals."""

import random
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import requests

from handler.server import TorchServe

TIMEOUT = 900.0
READY_SECONDS = 300.0
PROBE_EVERY = 4  # other files between two of those whose latency is measured


@dataclass(frozen=True)
class Calls:
    """What callers saw: texts in the order of the files, seconds of each request, and of all."""

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

    def closed_loop(self, passes: Sequence[Sequence[bytes]], callers: int) -> Calls:
        """All files of each pass, by so many callers who each wait for their answer.

        Each pass is in an order of its own, which is the same in each call. Texts are those of the
        first. `seconds` are those of one pass at saturation, see `saturated_speed`.
        """
        rng = random.Random(0)
        orders = [rng.sample(range(len(contents)), len(contents)) for contents in passes]
        sent = [contents[i] for contents, o in zip(passes, orders, strict=True) for i in o]

        def call(content: bytes) -> tuple[str, float, float]:
            started = time.perf_counter()
            text, _ = self.call(content)
            return text, started, time.perf_counter()

        with ThreadPoolExecutor(callers) as pool:
            found = list(pool.map(call, sent))
        first = dict(zip(orders[0], found, strict=False))
        texts = [first[i][0] for i in range(len(first))]
        latency = [ended - started for _, started, ended in found]
        work = map(len, sent)
        times = [(start, end, size) for (_, start, end), size in zip(found, work, strict=True)]
        speed = saturated_speed(times, callers)
        return Calls(texts, latency, sum(map(len, sent)) / len(passes) / speed)

    def probe(
        self, contents: Sequence[bytes], others: Sequence[bytes], rate: float, seed: int
    ) -> tuple[list[float], list[float]]:
        """Seconds that each file takes alone, and among others that come at random.

        Args:
            contents: the files.
            others: what else is sent: four requests of five.
            rate: arrivals in a second if all were as long as the others are on average; they come
                less often by as much as the files are longer.
            seed: of the arrivals.
        """
        alone = [self.call(content)[1] for content in contents]
        rng = random.Random(seed)
        mixed = [
            one for content in contents for one in (content, *rng.choices(others, k=PROBE_EVERY))
        ]
        rate *= statistics.mean(map(len, others)) / statistics.mean(map(len, mixed))
        return alone, self.arrivals(mixed, rate, seed)[:: PROBE_EVERY + 1]

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


def saturated_speed(calls: Sequence[tuple[float, float, int]], callers: int) -> float:
    """Return the work a second that was answered while all callers waited.

    Counted is what was answered from each caller's second request on until the last request was sent. At
    first all wait for the same batches, and after the last request a queue empties: both take a server
    that batches longer than another, and neither is saturation. Of fewer calls than three times the
    callers all are counted, since none were left.

    Args:
        calls: of each call its start, its end, and its work.
        callers: who call at the same time.
    """
    if len(calls) < 3 * callers:
        begin, last = min(start for start, _, _ in calls), max(end for _, end, _ in calls)
    else:
        begin = sorted(end for _, end, _ in calls)[callers - 1]
        last = max(start for start, _, _ in calls)
    return sum(work for _, end, work in calls if begin < end <= last) / (last - begin)


def in_turn(
    clients: Mapping[str, Client], passes: Sequence[Sequence[bytes]], rng: random.Random
) -> dict[str, Calls]:
    """One caller who sends each file of each pass to each server before the next.

    What slows the machine for seconds slows all of them. The order of the servers is drawn each time.
    Texts are those of the first pass, `seconds` those of one pass on average.
    """
    found: dict[str, list[tuple[str, float]]] = {name: [] for name in clients}
    for content in (content for contents in passes for content in contents):
        for name in rng.sample(list(clients), len(clients)):
            found[name].append(clients[name].call(content))
    return {
        name: Calls(
            [text for text, _ in own[: len(passes[0])]],
            [seconds for _, seconds in own],
            sum(seconds for _, seconds in own) / len(passes),
        )
        for name, own in found.items()
    }


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
