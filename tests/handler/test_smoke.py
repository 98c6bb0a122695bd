"""What the chart's smoke test waits for, and what it does not; test_pod.py has it on a real pod."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from handler import smoke
from handler.server import Ports


@contextmanager
def endpoint(*statuses: int, port: int = 0, page: str = "") -> Iterator[tuple[str, list[int]]]:
    """An endpoint that answers with these, one after the other, and the list of its answers."""
    given: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            known = self.headers["Authorization"] in (None, "Bearer first-of-the-tokens")
            given.append(statuses[min(len(given), len(statuses) - 1)] if known else 401)
            text = json.dumps({"text": "Lights on." if given[-1] == 200 else "no"})
            body = (page or text).encode()
            self.send_response(given[-1])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", given
        server.shutdown()


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The option with a clip; tries follow each other quickly."""
    monkeypatch.setattr("handler.smoke.PAUSE_SECONDS", 0.1)
    (tmp_path / "clip.wav").write_bytes(b"sound")
    return ["--clip", str(tmp_path / "clip.wav")]


def test_a_release_without_a_ready_pod_is_waited_for(clip: list[str]) -> None:
    with endpoint(503, 503, 200) as (url, given):
        assert smoke.main([*clip, "--url", url, "--expect", "lights"]) == 0
    assert given == [503, 503, 200]


def test_a_connection_that_is_refused_is_tried_again(clip: list[str]) -> None:
    port = Ports.free().inference
    results: list[int] = []
    waiting = threading.Thread(
        target=lambda: results.append(smoke.main([*clip, "--url", f"http://127.0.0.1:{port}"]))
    )
    waiting.start()
    time.sleep(0.5)
    assert not results
    with endpoint(200, port=port):
        waiting.join(30)
    assert results == [0]


def test_the_error_names_the_deadline_and_the_last_trouble(
    clip: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with endpoint(503) as (url, given):
        assert smoke.main([*clip, "--url", url, "--seconds", "0.5"]) == 1
    assert len(given) > 1
    assert "not within 0.5 s: 503" in capsys.readouterr().err


def test_what_another_try_would_not_change_is_said_at_once(
    clip: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with endpoint(401) as (url, given):
        assert smoke.main([*clip, "--url", url]) == 1
    assert given == [401]
    assert "401" in capsys.readouterr().err
    assert smoke.main([*clip, "--url", "no address"]) == 1
    assert "cannot be asked" in capsys.readouterr().err


def test_the_first_token_is_shown_and_no_comment(
    clip: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens"
    with endpoint(200) as (url, given):
        tokens.write_text("# of the mobile team\n\n first-of-the-tokens\nsecond-of-the-tokens\n")
        assert smoke.main([*clip, "--url", url, "--tokens", str(tokens)]) == 0
        tokens.write_text("# none yet\n")
        assert smoke.main([*clip, "--url", url, "--tokens", str(tokens)]) == 1
    assert given == [200]
    assert f"{tokens} holds no token" in capsys.readouterr().err


def test_a_page_that_is_no_transcript_is_shown(
    clip: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A gateway's log-in page comes with 200, too."""
    for page in ("<html>Log in</html>", '{"message": "Log in"}', '["Log in"]'):
        with endpoint(200, page=page) as (url, _):
            assert smoke.main([*clip, "--url", url]) == 1
        assert f"answers with no transcript: {page}" in capsys.readouterr().err
