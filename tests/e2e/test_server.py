"""Starting and stopping a real TorchServe, and the two commands that do it for a person."""

import os
import re
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


def without_proxies() -> dict[str, str]:
    """This process' environment without the variables that name a proxy, or what goes past it."""
    return {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}


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


def test_an_address_of_another_machine_is_named(model_store: Path) -> None:
    # 192.0.2.1 is for documentation (RFC 5737): nobody has it.
    for host in ("192.0.2.1", "no.such.host.invalid", "::1"):
        with (
            pytest.raises(ServerError, match=f"cannot listen at '{host}'"),
            TorchServe(model_store, host=host),
        ):
            pass


def test_a_taken_port_is_named(server: TorchServe, model_store: Path) -> None:
    with (
        pytest.raises(ServerError, match=str(server.ports.inference)),
        TorchServe(model_store, ports=server.ports),
    ):
        pass
    assert Ports.free().taken() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0)]
)
def test_serve_prints_a_curl_line_that_works_and_a_signal_ends_everything(
    model_store: Path, private_tmp: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    # Another address of loopback, which the printed line must name; and a proxy that there is not.
    command = [sys.executable, "-m", "handler.serve", "--model-store", str(model_store)]
    command += ["--host", "127.0.0.2"]

    def as_in_a_terminal() -> None:
        # A background job starts with Ctrl-C, and under nohup with SIGHUP, ignored, and hands that on.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    proxy = f"http://127.0.0.1:{Ports.free().inference}"
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**without_proxies(), "http_proxy": proxy, "HTTP_PROXY": proxy},
        preexec_fn=as_in_a_terminal,
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
        assert "http://127.0.0.2:" in lines[start]
        curl = subprocess.run(
            ["bash", "-c", "".join(lines[start : start + 3])],
            cwd=tmp_path,
            env=without_proxies(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert '"text"' in curl.stdout, curl
        process.send_signal(number)
        assert process.wait(60) == status
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
    assert re.search(r"^ +\d+\.\d\d - +\d+\.\d\d  \w", done.stdout, re.MULTILINE)
    assert "refused with 400: the file begins with" in done.stdout
    assert "1 of 2 files transcribed; TorchServe is stopped." in done.stdout
    assert_nothing_left(private_tmp)
