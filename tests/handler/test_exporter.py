"""When the exporter calls a pod ready, through a drain and a start of the server."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from handler.exporter import ExporterServer, Watch
from handler.launch import announce
from handler.management import ManagementError, ModelState, describe
from handler.server import Ports

LOADED = ModelState(ready=1, workers=1, pending=0, capacity=64, batch_delay=0.001)
LOADING = replace(LOADED, ready=0)


class Management:
    """TorchServe's management API on a real port, which servers take one after the other."""

    def __init__(self) -> None:
        self.port = Ports.free().management
        self.url = f"http://127.0.0.1:{self.port}"

    def watch(self) -> Watch:
        return Watch(lambda: describe(self.url), interval=2.0)

    @contextmanager
    def server(self, status: str) -> Iterator[None]:
        """A server whose one worker has a status."""
        queue = {"pendingRequests": 0, "remainingCapacity": 64}
        model = {"workers": [{"status": status}], "jobQueueStatus": queue, "maxBatchDelay": 1}
        body = json.dumps([model]).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", self.port), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield
            server.shutdown()


@contextmanager
def exporter(watch: Watch) -> Iterator[str]:
    """The exporter's URL; the watch looks when the test tells it to."""
    with ExporterServer(("127.0.0.1", 0), watch) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def readiness(url: str) -> tuple[int, str]:
    answer = requests.get(f"{url}/ready", timeout=10)
    return answer.status_code, answer.text.strip()


def test_a_drain_lasts_until_the_next_server_starts_however_soon_that_is() -> None:
    management = Management()
    with exporter(watch := management.watch()) as url:
        with management.server("READY"):
            watch.look()
            assert readiness(url) == (200, "ready")
            requests.post(f"{url}/drain", timeout=10)
            watch.look()
            assert readiness(url) == (503, "the server ends")
        # Between two looks the former server has gone and the next one has come.
        announce(url)
        assert readiness(url) == (503, "a server starts")
        with management.server("UNLOADED"):
            watch.look()
            assert readiness(url) == (503, "none of 1 workers has loaded the model")
        with management.server("READY"):
            watch.look()
            assert readiness(url) == (200, "ready")


def test_a_drained_server_that_is_gone_or_slow_does_not_end_its_drain() -> None:
    management = Management()
    with exporter(watch := management.watch()) as url:
        requests.post(f"{url}/drain", timeout=10)
        watch.look()
        assert readiness(url) == (503, "the server ends")
        with management.server("READY"):
            watch.look()
            assert readiness(url) == (503, "the server ends")


def test_an_answer_of_the_former_server_does_not_count_for_the_next_one() -> None:
    answers: list[Callable[[], ModelState]] = []
    watch = Watch(lambda: answers.pop(0)(), interval=2.0)

    def answered_late() -> ModelState:
        watch.forget_server()
        return LOADED

    answers += [answered_late, lambda: LOADING, lambda: LOADED]
    watch.look()
    assert watch.unready() == "a server starts"
    watch.look()
    assert watch.unready() == "none of 1 workers has loaded the model"
    watch.look()
    assert watch.unready() is None


def test_one_slow_answer_does_not_make_a_pod_unready() -> None:
    answers = iter([LOADED, None])

    def ask() -> ModelState:
        answer = next(answers)
        if answer is None:
            raise ManagementError("slow")
        return answer

    watch = Watch(ask, interval=2.0)
    watch.look()
    watch.look()
    assert watch.unready() is None


def test_a_server_starts_without_an_exporter_that_would_hear_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    announce(f"http://127.0.0.1:{Ports.free().inference}")
    assert "was not told of the start" in capsys.readouterr().err
