"""When a drain ends, and what counts as work; test_pod.py has it on a real server."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from handler.busy import busy, is_busy
from handler.drain import PID_FILE, POLL_SECONDS, Drain, NoWorkerError, is_idle, main
from handler.management import ManagementError, ModelState, describe
from handler.pod_key import KEY, write_key
from handler.server import Ports
from training.package import ROOT

QUICK = Drain(propagation=0.0, settle=0.3, timeout=5.0)


def sequence(*states: bool) -> Callable[[], bool]:
    """Idle or not, one after the other; the last for ever."""
    left = list(states)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_it_waits_until_there_is_nothing_left() -> None:
    seen: list[bool] = []
    states = sequence(False, False, True)

    def idle() -> bool:
        seen.append(states())
        return seen[-1]

    assert QUICK.wait(idle)
    assert seen[:3] == [False, False, True]
    assert len(seen) > 3  # and for as long as it takes to settle


def test_a_short_pause_between_two_batches_is_not_the_end() -> None:
    seen: list[bool] = []
    states = sequence(True, False, False, True)

    def idle() -> bool:
        seen.append(states())
        return seen[-1]

    settle = 4 * POLL_SECONDS
    assert Drain(propagation=0.0, settle=settle, timeout=60.0).wait(idle)
    # After the pause it begins to settle anew. A slow machine looks less often, but twice at least.
    assert seen[:3] == [True, False, False]
    assert len(seen) >= 5 and all(seen[3:])


def test_what_never_ends_is_given_up_at_the_deadline() -> None:
    assert not Drain(propagation=0.0, settle=0.1, timeout=0.6).wait(lambda: False)


def test_before_the_propagation_is_over_it_does_not_even_ask() -> None:
    start = time.monotonic()
    asked: list[float] = []

    def idle() -> bool:
        asked.append(time.monotonic() - start)
        return True

    assert Drain(propagation=0.5, settle=0.0, timeout=5.0).wait(idle)
    assert asked[0] >= 0.5


def test_a_server_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.drain.LOST_SECONDS", 0.5)

    def idle() -> bool:
        raise ManagementError("gone")

    start = time.monotonic()
    with pytest.raises(ManagementError, match="gone"):
        Drain(propagation=0.0, settle=0.1, timeout=60.0).wait(idle)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("name", ["java", "other"])
def test_a_java_that_hangs_is_killed_and_nothing_else(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("handler.drain.LOST_SECONDS", 0.5)
    shutil.copy(shutil.which("sleep") or "", tmp_path / name)
    process = subprocess.Popen([tmp_path / name, "600"])
    try:
        process.send_signal(signal.SIGSTOP)
        (tmp_path / PID_FILE).write_text(str(process.pid))
        url = f"http://127.0.0.1:{Ports.free().management}"
        command = ["--propagation", "0", "--timeout", "60", "--folder", str(tmp_path)]
        assert main([*command, "--management", url]) == 1
        said = capsys.readouterr().err
        if name == "java":
            assert process.wait(10) == -signal.SIGKILL
            assert "java was killed" in said
        else:
            assert process.poll() is None
            assert "there is no java" in said
    finally:
        process.kill()
        process.wait()


def test_what_waits_for_a_worker_that_was_given_up_does_not_keep_the_pod(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    states = iter([ModelState(1, 1, 2, 64, 0.0)])
    given_up = ModelState(ready=0, workers=1, pending=2, capacity=64, batch_delay=0.0)
    monkeypatch.setattr("handler.management.describe", lambda url: next(states, given_up))
    monkeypatch.setattr("handler.drain.WORKERLESS_SECONDS", 0.5)

    def idle() -> bool:
        return is_idle("http://127.0.0.1:1", tmp_path)

    assert not idle()  # a worker is READY and will take them
    with pytest.raises(NoWorkerError, match="2 requests wait, and none of 1 is READY"):
        idle()
    with busy(tmp_path):
        assert not idle()
    start = time.monotonic()
    assert not Drain(propagation=0.0, settle=0.1, timeout=60.0).wait(idle)
    assert time.monotonic() - start < 30


def test_one_slow_answer_does_not_end_it() -> None:
    answers = iter([True, None, True, True, True, True])

    def idle() -> bool:
        answer = next(answers)
        if answer is None:
            raise ManagementError("slow")
        return answer

    assert QUICK.wait(idle)


def test_one_slow_answer_while_a_worker_is_started_again_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("handler.drain.LOST_SECONDS", 0.5)
    states = [*[NoWorkerError("2 wait")] * 4, ManagementError("slow"), NoWorkerError("2 wait")]

    def idle() -> bool:
        if states:
            raise states.pop(0)
        return True

    assert QUICK.wait(idle)


def test_busy_is_seen_by_other_processes_and_ends_with_a_killed_worker(tmp_path: Path) -> None:
    assert not is_busy(tmp_path)
    with busy(tmp_path), busy(tmp_path):  # two workers
        assert is_busy(tmp_path)
    assert not is_busy(tmp_path)

    code = (
        "import sys, time, pathlib; from handler.busy import busy\n"
        "with busy(pathlib.Path(sys.argv[1])): print('in', flush=True); time.sleep(600)"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert worker.stdout is not None and worker.stdout.readline() == b"in\n"
    assert is_busy(tmp_path)
    worker.kill()
    worker.wait()
    assert not is_busy(tmp_path)


def test_two_drains_at_once_wait_for_the_same_work(tmp_path: Path) -> None:
    patient = Drain(propagation=0.0, settle=0.3, timeout=120.0)
    with ThreadPoolExecutor(2) as callers:
        with busy(tmp_path):
            drains = [callers.submit(patient.wait, lambda: not is_busy(tmp_path)) for _ in range(2)]
            time.sleep(1)
            assert not any(drain.done() for drain in drains)
            with busy(tmp_path):  # a worker is not held up by those who look
                pass
        assert all(drain.result() for drain in drains)


def test_an_exporter_that_was_not_told_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler.drain.LOST_SECONDS", 0.0)
    ports = Ports.free()
    write_key(tmp_path)
    command = ["--propagation", "0", "--timeout", "60", "--folder", str(tmp_path)]
    command += ["--management", f"http://127.0.0.1:{ports.management}"]
    command += ["--exporter", f"http://127.0.0.1:{ports.inference}"]
    for key in (KEY, "there-is-none"):
        assert main([*command, "--key", str(tmp_path / key)]) == 1
        assert "the exporter was not told of the drain" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(command)
    assert "--exporter needs --key" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_named() -> None:
    url = f"http://127.0.0.1:{Ports.free().management}"
    with pytest.raises(ManagementError, match=url):
        describe(url, timeout=1)
