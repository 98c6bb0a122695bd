"""Starting and stopping a real TorchServe, and the two commands that do it for a person."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from handler.server import Ports, ServerError, TorchServe
from tests.e2e.inputs import encoded, speech
from tests.random_checkpoint import SHIPPED
from training.package import ROOT, build_package


@pytest.fixture
def private_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of this test's own, so that others' servers are not taken for ours."""
    # Not pytest's: its path is too long for a socket's 107 characters.
    with tempfile.TemporaryDirectory(prefix="s-") as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(name)


def group_of(folder: Path) -> list[psutil.Process]:
    """Return the running processes that work in or under a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        text = " ".join(process.info["cmdline"] or [])
        if str(folder) in text and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def assert_nothing_left(folder: Path) -> None:
    assert group_of(folder) == []
    assert list(folder.glob("steno-*")) == []


@pytest.mark.slow
def test_leaving_by_an_exception_leaves_nothing(model_store: Path, private_tmp: Path) -> None:
    def use() -> None:
        with TorchServe(model_store) as server:
            assert [worker["status"] for worker in server.workers()] == ["READY"]
            assert len(group_of(private_tmp)) >= 2  # java and the worker
            raise KeyError("anything")

    with pytest.raises(KeyError, match="anything"):
        use()
    assert_nothing_left(private_tmp)


@pytest.mark.slow
def test_a_crashing_worker_is_reported_with_its_reason_at_once(
    tmp_path: Path, private_tmp: Path
) -> None:
    settings = tmp_path / "wrong.yaml"
    settings.write_text("minWorkers: 1\nmaxWorkers: 1\nhandler: {colour: red}\n")
    build_package(SHIPPED, tmp_path, model_config=settings)
    start = time.monotonic()
    with pytest.raises(ServerError, match="colour") as caught, TorchServe(tmp_path, timeout=120):
        pass
    assert "could not load the model" in str(caught.value)
    assert time.monotonic() - start < 100
    assert_nothing_left(private_tmp)


def test_without_an_archive_the_command_to_make_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="make package"), TorchServe(tmp_path):
        pass


def test_a_taken_port_is_named(server: TorchServe, model_store: Path) -> None:
    with (
        pytest.raises(ServerError, match=str(server.ports.inference)),
        TorchServe(model_store, ports=server.ports),
    ):
        pass
    assert Ports.free().taken() == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_prints_a_curl_line_that_works_and_a_signal_ends_everything(
    model_store: Path, private_tmp: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "handler.serve", "--model-store", str(model_store)]
    # A background job starts with Ctrl-C ignored, and hands that on; a terminal does not.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "Tokens:" not in lines[-1]:
            line = process.stdout.readline()
            assert line, lines
            lines.append(line)
        (tmp_path / "recording.wav").write_bytes(encoded(speech()))
        start = next(i for i, line in enumerate(lines) if line.lstrip().startswith("curl"))
        curl = subprocess.run(
            ["bash", "-c", "".join(lines[start : start + 3])],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert '"text"' in curl.stdout, curl
        process.send_signal(number)
        assert process.wait(60) == (143 if number == signal.SIGTERM else 0)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
            process.wait(60)
    assert_nothing_left(private_tmp)


@pytest.mark.slow
def test_demo_prints_text_and_word_times_and_the_error_of_a_file_that_is_no_audio(
    model_store: Path, private_tmp: Path, tmp_path: Path
) -> None:
    (tmp_path / "good.wav").write_bytes(encoded(speech()))
    (tmp_path / "notes.txt").write_text("not a recording")
    command = [sys.executable, "-m", "handler.demo", "--model-store", str(model_store)]
    files = [str(tmp_path / name) for name in ("good.wav", "notes.txt")]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr  # one of the two was refused
    assert "x real time" in done.stdout
    assert "refused with 400: the file begins with" in done.stdout
    assert "1 of 2 files transcribed; TorchServe is stopped." in done.stdout
    assert_nothing_left(private_tmp)
