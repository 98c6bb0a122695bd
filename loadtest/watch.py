"""The server seen from outside while a test runs: queue, workers, batches, memory.

TorchServe has the queue's length in its management API alone, and what its worker has done in its
metrics. Both may be out of reach (the management API listens on loopback only); then a test goes on
without them.
"""

import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import gevent
import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families

PERIOD_SECONDS = 1.0
# A busy server may answer late; that is a gap in a curve and not an error.
TIMEOUT_SECONDS = 5.0
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
WORKER_SCRIPT = "model_service_worker"


class Server(NamedTuple):
    """The settings that the served model has; None is what could not be seen."""

    workers: int | None = None
    batch_size: int | None = None
    queue: int | None = None


UNSEEN = Server()


class Sample(NamedTuple):
    """One look; None is what could not be seen.

    Attributes:
        time: seconds since the epoch.
        load: callers at work (closed loop) or requests due in a second (open loop).
        queued: requests that wait.
        workers: those that are READY.
        worker_bytes: resident memory of the workers, where they run on this machine.
        busy_seconds: time that the workers have spent on batches, since they started.
        batches: that they have answered.
        batched_requests: in those.
        audio_seconds: recognized.
    """

    time: float
    load: float
    queued: int | None = None
    workers: int | None = None
    worker_bytes: int | None = None
    busy_seconds: float | None = None
    batches: float | None = None
    batched_requests: float | None = None
    audio_seconds: float | None = None


class Watch:
    """Samples the server each second in a greenlet, from `start` to `stop`.

    Args:
        load: tells the load at this moment.
        management_url: as "http://127.0.0.1:8081/models/asr"; None when it is out of reach.
        management_token: its token.
        metrics_url: as "http://127.0.0.1:8082/metrics"; None when it is out of reach.
    """

    def __init__(
        self,
        load: Callable[[], float],
        management_url: str | None,
        management_token: str | None,
        metrics_url: str | None,
    ) -> None:
        self.samples: list[Sample] = []
        self.server = UNSEEN
        self._load = load
        self._management_url = management_url
        self._management_token = management_token
        self._metrics_url = metrics_url
        self._session = requests.Session()
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Begin anew."""
        self.samples = []
        self.server = UNSEEN
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """End; harmless when it does not run."""
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None

    def _run(self) -> None:
        while True:
            started = time.monotonic()
            self.samples.append(self.look())
            gevent.sleep(max(0.0, PERIOD_SECONDS - (time.monotonic() - started)))

    def look(self) -> Sample:
        """Take one sample."""
        sample = Sample(time.time(), self._load())
        try:
            sample = self._with_queue(sample)
            return self._with_counters(sample)
        except (requests.RequestException, ValueError, KeyError, IndexError):
            return sample

    def _with_queue(self, sample: Sample) -> Sample:
        if self._management_url is None:
            return sample
        token = self._management_token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        response = self._session.get(self._management_url, headers=headers, timeout=TIMEOUT_SECONDS)
        response.raise_for_status()
        model = response.json()[0]
        queue = model["jobQueueStatus"]
        self.server = Server(
            int(model["minWorkers"]),
            int(model["batchSize"]),
            int(queue["pendingRequests"]) + int(queue["remainingCapacity"]),
        )
        ready = [worker for worker in model["workers"] if worker["status"] == "READY"]
        local = urlsplit(self._management_url).hostname in LOOPBACK
        return sample._replace(
            queued=int(queue["pendingRequests"]),
            workers=len(ready),
            worker_bytes=_memory([int(worker["pid"]) for worker in ready]) if local else None,
        )

    def _with_counters(self, sample: Sample) -> Sample:
        if self._metrics_url is None:
            return sample
        response = self._session.get(self._metrics_url, timeout=TIMEOUT_SECONDS)
        response.raise_for_status()
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(response.text):
            for item in family.samples:
                totals[item.name] = totals.get(item.name, 0.0) + item.value

        def counted(*names: str) -> float:
            """A counter appears with the first batch."""
            return sum(totals.get(name, 0.0) for name in names)

        return sample._replace(
            busy_seconds=counted("steno_decode_seconds_sum", "steno_model_seconds_sum"),
            batches=counted("steno_batch_size_count"),
            batched_requests=counted("steno_batch_size_sum"),
            audio_seconds=counted("steno_audio_seconds_total"),
        )


def _memory(pids: list[int]) -> int | None:
    """Resident bytes of the workers; None when they are not on this machine (a forwarded port)."""
    try:
        processes = [psutil.Process(pid) for pid in pids]
        if not all(WORKER_SCRIPT in " ".join(process.cmdline()) for process in processes):
            return None
        return sum(process.memory_info().rss for process in processes)
    except psutil.Error:
        return None
