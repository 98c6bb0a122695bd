"""When the exporter calls a pod ready, through a drain and a start of the server."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from handler.auth import Tokens
from handler.exporter import STALE_INTERVALS, ExporterServer, Watch
from handler.launch import announce
from handler.management import TIMEOUT_SECONDS, ManagementError, ModelState, describe
from handler.pod_key import KEY, tell, write_key
from handler.server import Ports
from store import StoreError

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


@pytest.fixture
def key(tmp_path: Path) -> Path:
    write_key(tmp_path)
    return tmp_path / KEY


@contextmanager
def exporter(watch: Watch, key: Path) -> Iterator[str]:
    """The exporter's URL; the watch looks when the test tells it to."""
    with ExporterServer(("127.0.0.1", 0), watch, Tokens(key)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def readiness(url: str) -> tuple[int, str]:
    answer = requests.get(f"{url}/ready", timeout=10)
    return answer.status_code, answer.text.strip()


def test_a_drain_lasts_until_the_next_server_starts_however_soon_that_is(key: Path) -> None:
    management = Management()
    with exporter(watch := management.watch(), key) as url:
        with management.server("READY"):
            watch.look()
            assert readiness(url) == (200, "ready")
            tell(url, "drain", key)
            watch.look()
            assert readiness(url) == (503, "the server ends")
        # Between two looks the former server has gone and the next one has come.
        announce(url, key)
        assert readiness(url) == (503, "a server starts")
        with management.server("UNLOADED"):
            watch.look()
            assert readiness(url) == (503, "none of 1 workers has loaded the model")
        with management.server("READY"):
            watch.look()
            assert readiness(url) == (200, "ready")


def test_a_drained_server_that_is_gone_or_slow_does_not_end_its_drain(key: Path) -> None:
    management = Management()
    with exporter(watch := management.watch(), key) as url:
        tell(url, "drain", key)
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


def test_what_was_said_long_ago_says_nothing_about_now(
    key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hangs keeps its pod ready for some seconds, and not for ever."""
    answers = iter([LOADED])

    def ask() -> ModelState:
        try:
            return next(answers)
        except StopIteration:
            raise ManagementError("it hangs") from None

    watch = Watch(ask, interval=2.0)
    watch.look()
    watch.look()
    limit = STALE_INTERVALS * 2.0 + TIMEOUT_SECONDS
    with exporter(watch, key) as url:
        assert readiness(url) == (200, "ready")
        assert "steno_queue_depth 0.0" in requests.get(f"{url}/metrics", timeout=10).text
        now = time.monotonic()
        monkeypatch.setattr("handler.exporter.time.monotonic", lambda: now + limit + 1)
        assert readiness(url) == (503, "it hangs")
        metrics = requests.get(f"{url}/metrics", timeout=10).text
        assert "steno_management_up 0.0" in metrics and "steno_ready 0.0" in metrics
        assert "steno_queue_depth" not in metrics  # unknown, and not empty


def test_a_store_that_cannot_be_read_is_told_until_it_can(key: Path) -> None:
    said: list[str | Exception] = ["v7", StoreError("no permission"), OSError("gone"), "v8"]

    def production() -> str:
        answer = said.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    watch = Watch(lambda: LOADED, interval=2.0, production=production)
    seen = []
    with exporter(watch, key) as url:
        while said:
            watch.look_into_store()
            metrics = requests.get(f"{url}/metrics", timeout=10).text
            version = re.search(r'steno_production_info{version="(.*)"}', metrics)
            seen.append(("steno_store_up 1.0" in metrics, version and version[1]))
    # What was read last is still the best that is known.
    assert seen == [(True, "v7"), (False, "v7"), (False, "v7"), (True, "v8")]


def test_a_server_starts_without_an_exporter_that_would_hear_of_it(
    key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{Ports.free().inference}"
    for path in (key, tmp_path / "there-is-none"):
        announce(url, path)
        assert "was not told of the start" in capsys.readouterr().err


def test_nobody_is_believed_by_where_he_comes_from(key: Path, tmp_path: Path) -> None:
    """A mesh's proxy brings strangers' requests from 127.0.0.1."""
    (tmp_path / "other").mkdir()
    write_key(tmp_path / "other")
    with exporter(watch := Management().watch(), key) as url:
        for what in ("drain", "start", "metrics"):
            assert requests.post(f"{url}/{what}", timeout=10).status_code == 403
        with pytest.raises(requests.HTTPError, match="403"):
            tell(url, "drain", tmp_path / "other" / KEY)
        assert not watch.draining
        tell(url, "drain", key)
        assert watch.draining
        key.unlink()
        with pytest.raises(FileNotFoundError):
            tell(url, "start", key)
        assert requests.post(f"{url}/start", timeout=10).status_code == 403
        assert watch.draining
