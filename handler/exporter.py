"""What Kubernetes and Prometheus need to know and TorchServe does not tell: python -m handler.exporter

    /metrics   queue, workers, version
    /ready     200 if a worker has loaded the model and the server does not end; else 503 with the reason
    /drain     POST, with the pod's key: the server ends, /ready says so from now on
    /start     POST, with the pod's key: a server starts, and the former one is forgotten

It asks the management API, which stays on loopback, every few seconds.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from handler import management
from handler.auth import Tokens
from handler.management import ManagementError, ModelState
from handler.served import Served
from store import ModelStore, StoreConfig, StoreError

# How often the production pointer is read; who moves it also rolls the pods out.
STORE_SECONDS = 60.0
# An answer older than so many intervals says nothing about now.
STALE_INTERVALS = 3


class Watch:
    """The newest state of the server and of the production pointer, read in the background.

    Args:
        ask: returns the model's state; raises ManagementError.
        interval: seconds between two questions.
        served: what the pod serves; None where nothing recorded it.
        production: returns the version in production; raises StoreError. None: nobody asks.
    """

    def __init__(
        self,
        ask: Callable[[], ModelState],
        *,
        interval: float,
        served: Served | None = None,
        production: Callable[[], str | None] | None = None,
    ) -> None:
        self._ask = ask
        self._interval = interval
        self.served = served
        self._production = production
        self._state: ModelState | None = None
        self._state_at = 0.0
        self._lock = threading.Lock()  # no answer of a former server after forget_server()
        self._servers = 0
        self._trouble = "the server has not been asked yet"
        self.draining = False
        self.production_version: str | None = None
        self.store_up = False

    @property
    def watches_store(self) -> bool:
        """Whether the production pointer is read."""
        return self._production is not None

    def start(self) -> None:
        """Begin to ask, in threads that end with the process."""
        threading.Thread(target=self._repeat, args=(self.look, self._interval), daemon=True).start()
        if self.watches_store:
            arguments = (self.look_into_store, STORE_SECONDS)
            threading.Thread(target=self._repeat, args=arguments, daemon=True).start()

    def look(self) -> None:
        """Ask the server once."""
        asked = self._servers
        try:
            state = self._ask()
        except ManagementError as error:
            self._trouble = str(error)
            return
        with self._lock:
            if asked == self._servers:
                self._state, self._state_at = state, time.monotonic()

    def forget_server(self) -> None:
        """Forget the former server, which has ended: its drain, and what it said of its workers."""
        with self._lock:
            self._servers += 1
            self._state = None
            self._trouble = "a server starts"
            # Last, so that nobody finds a server that does not drain and has the former's workers.
            self.draining = False

    def look_into_store(self) -> None:
        """Read the production pointer once."""
        assert self._production is not None
        try:
            self.production_version = self._production()
            self.store_up = True
        except (StoreError, OSError) as error:  # OSError: a store that is a folder
            self.store_up = False
            print(f"the production pointer cannot be read: {error}", file=sys.stderr, flush=True)

    def state(self) -> ModelState | None:
        """Return the server's state; None when nothing recent is known."""
        limit = STALE_INTERVALS * self._interval + management.TIMEOUT_SECONDS
        return self._state if time.monotonic() - self._state_at < limit else None

    def unready(self) -> str | None:
        """Return why no request should be sent here; None if some should."""
        if self.draining:
            return "the server ends"
        state = self.state()
        if state is None:
            return self._trouble
        if state.ready == 0:
            return f"none of {state.workers} workers has loaded the model"
        return None

    @staticmethod
    def _repeat(look: Callable[[], None], interval: float) -> None:
        while True:
            look()
            time.sleep(interval)


class StateCollector(Collector):
    """A watch's state as metrics; what is not known is left out and not zero."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        watch = self._watch
        state = watch.state()
        yield _gauge("steno_management_up", "1 if the management API answers", state is not None)
        yield _gauge("steno_ready", "1 if requests should be sent here", watch.unready() is None)
        yield _gauge("steno_draining", "1 if the server is drained", watch.draining)
        if state is not None:
            yield _gauge("steno_workers", "Workers, in whatever state", state.workers)
            yield _gauge("steno_workers_ready", "Workers that have loaded the model", state.ready)
            yield _gauge("steno_queue_depth", "Requests that wait", state.pending)
            yield _gauge("steno_queue_capacity", "Requests that may wait", state.capacity)
        if watch.served is not None:
            labels = {
                "version": watch.served.version,
                "sha256": watch.served.sha256,
                "pinned": str(watch.served.pinned).lower(),
            }
            yield InfoMetricFamily("steno_model", "The model that is served", labels)
        if watch.watches_store:
            yield _gauge(
                "steno_store_up", "1 if the production pointer could be read", watch.store_up
            )
            if watch.production_version:
                yield InfoMetricFamily(
                    "steno_production",
                    "The version in production by the store",
                    {"version": watch.production_version},
                )


class ExporterServer(ThreadingHTTPServer):
    """Answers /metrics and /ready from a watch, and tells it of /drain and /start.

    Args:
        address: host and port.
        watch: what is told.
        key: what who says /drain and /start must know; None: nobody is believed.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], watch: Watch, key: Tokens | None = None) -> None:
        self.watch = watch
        self._key = key
        self.registry = CollectorRegistry()
        self.registry.register(StateCollector(watch))
        super().__init__(address, _Handler)

    def believes(self, headers: Mapping[str, str]) -> bool:
        """Whether a request comes from the pod itself."""
        if self._key is None:
            return False
        try:
            self._key.check(headers)
        except (OSError, ValueError):  # a wrong key is a ValueError, too
            return False
        return True


class _Handler(BaseHTTPRequestHandler):
    server: ExporterServer
    timeout = 10  # a client that says nothing must not hold a thread

    def do_GET(self) -> None:
        if self.path == "/metrics":
            body = generate_latest(self.server.registry)
            self._answer(HTTPStatus.OK, body, CONTENT_TYPE_LATEST)
        elif self.path == "/ready":
            reason = self.server.watch.unready()
            status = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, f"{reason or 'ready'}\n".encode())
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"there are /metrics and /ready\n")

    def do_POST(self) -> None:
        # Others could otherwise take the pod out of service.
        if not self.server.believes(dict(self.headers.items())):
            self._answer(HTTPStatus.FORBIDDEN, b"only the pod itself may say that it ends\n")
        elif self.path == "/drain":
            self.server.watch.draining = True
            self._answer(HTTPStatus.OK, b"draining\n")
        elif self.path == "/start":
            self.server.watch.forget_server()
            self._answer(HTTPStatus.OK, b"starting\n")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"there are /drain and /start\n")

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: probes come every few seconds."""


def main(arguments: list[str] | None = None) -> int:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m handler.exporter", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=9404)
    parser.add_argument("--management", default=management.DEFAULT_URL, help="URL")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two looks")
    parser.add_argument("--served", type=Path, help="the record that handler.fetch wrote")
    parser.add_argument("--key", type=Path, help="the pod's key, which handler.fetch wrote, too")
    options = parser.parse_args(arguments)

    watch = Watch(
        lambda: management.describe(options.management),
        interval=options.interval,
        served=Served.read(options.served) if options.served else None,
        production=_pointer(os.environ.get("STENO_STORE")),
    )
    key = Tokens(options.key) if options.key else None
    watch.start()
    # Process 1 of a container ignores signals that it does not handle.
    signal.signal(signal.SIGTERM, _leave)
    with ExporterServer((options.host, options.port), watch, key) as server:
        server.serve_forever()
    return 0


def _pointer(url: str | None) -> Callable[[], str | None] | None:
    """Return what reads the production pointer of the store at `url`, if there is one."""
    if not url:
        return None
    store = ModelStore.open(StoreConfig(url=url))

    def read() -> str | None:
        production = store.production()
        return production.version if production else None

    return read


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
