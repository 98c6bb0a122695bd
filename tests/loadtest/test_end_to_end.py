"""The whole command, against a real TorchServe and against none."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtest.outcomes import Outcome
from tests.processes import started

OBJECTIVES = """\
latency: {command: {p50: 60, p95: 60}, sentence: {p95: 60}, bad: {p50: 60}}
most_failed: 0
most_refused: 0
least_rtfx: 0.1
"""
MIX = "command=50,sentence=30,long=4,bad=16"


def run(folder: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, output, and results.json if there is one."""
    objectives = folder / "objectives.yaml"
    objectives.write_text(OBJECTIVES)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "loadtest", "--objectives", str(objectives)),
            *("--output", str(folder / "out"), "--mix", MIX, "--mode", "fast", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    results = folder / "out" / "results.json"
    found = json.loads(results.read_text()) if results.is_file() else {}
    return done.returncode, done.stdout + done.stderr, found


def test_help_tells_our_options_and_locusts(tmp_path: Path) -> None:
    code, output, _ = run(tmp_path, "--help")
    assert code == 0
    for option in ("--model-store", "--loop", "--answer-timeout", "--objectives", "--processes"):
        assert f"  {option}" in output or f", {option}" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "--loop closed --users 3 --run-time 15s",
        "--protocol grpc --loop open --rate 1.5 --users 4 --run-time 12s --shape spike",
    ],
    ids=["HTTP, closed loop", "gRPC, open loop, spike"],
)
def test_a_real_server_is_loaded_and_judged(
    tmp_path: Path, model_store: Path, options: str
) -> None:
    code, output, found = run(tmp_path, "--model-store", str(model_store), *options.split())
    assert code == 0, output
    assert found["met"]
    kinds = found["kinds"]
    assert {"command", "sentence", "bad"} <= set(kinds)
    assert all(own["answered"] == own["requests"] for own in kinds.values())
    # The server was looked into: its settings, its queue, its worker's memory, and what it recognized.
    assert found["server"] == {"workers": 1, "batch_size": 8, "queue": 64}
    fields = found["sample_fields"]
    last = dict(zip(fields, found["samples"][-1], strict=True))
    assert last["workers"] == 1
    assert last["worker_bytes"] > 10**8
    assert last["batched_requests"] >= 0.5 * found["totals"]["requests"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The objectives are met" in page
    assert "out of reach" not in page


def test_where_nothing_answers_every_request_fails_and_the_verdict_is_1(tmp_path: Path) -> None:
    code, output, found = run(
        tmp_path,
        "--host",
        "http://127.0.0.1:9",
        "--loop",
        "closed",
        "--users",
        "2",
        "--run-time",
        "2s",
        "--think",
        "0.2",
    )
    assert code == 1, output
    assert found["totals"]["failed"] == found["totals"]["requests"] > 0
    assert found["server"] == {"workers": None, "batch_size": None, "queue": None}
    assert any(
        "no answer: ConnectionRefusedError" in reason for reason in found["totals"]["reasons"]
    )
    assert "MISSED  failed: 100.00 %" in output


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--mix", "songs=1"), "KIND=SHARE"),
        (("--objectives", "nowhere.yaml"), "nowhere.yaml"),
        (("--rate", "0"), "--rate is 0"),
        (("--loop", "closed", "--shape", "step", "--users", "5"), "needs at least 6"),
    ],
)
def test_what_cannot_be_tested_ends_with_2_and_the_reason(
    tmp_path: Path, arguments: tuple[str, ...], names: str
) -> None:
    code, output, found = run(tmp_path, "--host", "http://127.0.0.1:9", *arguments)
    assert code == 2, output
    assert names in output
    assert not found


@pytest.mark.slow
def test_a_shape_changes_the_rate_of_a_single_user_in_the_open_loop(tmp_path: Path) -> None:
    options = "--host http://127.0.0.1:9 --loop open --users 1 --rate 60 --shape ramp --run-time 6s"
    _, output, found = run(tmp_path, *options.split())
    dues = sorted(Outcome(*fields).due for fields in found["outcomes"])
    assert len(dues) == pytest.approx(60 * 6 / 2, rel=0.35), output
    early = sum(due < dues[0] + (dues[-1] - dues[0]) / 2 for due in dues)
    assert early == pytest.approx(len(dues) / 4, rel=0.4)
    loads = [
        dict(zip(found["sample_fields"], own, strict=True))["load"] for own in found["samples"]
    ]
    assert loads[1] < 30 < loads[-1]


def test_without_an_archive_the_command_says_how_to_make_one(tmp_path: Path) -> None:
    code, output, _ = run(tmp_path, "--model-store", str(tmp_path))
    assert code == 2
    assert "make package" in output


@contextmanager
def started_silent(out: Path, host: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A test of two users whose requests are under way."""
    command = [
        *(sys.executable, "-m", "loadtest", "--host", host, "--users", "2"),
        *("--loop", "closed", "--spawn-rate", "2", "--stop-timeout", "1"),
        *("--output", str(out), *arguments),
    ]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with started(command, **pipes, text=True) as (process,):
        for line in process.stderr:  # Locust's log
            if "All users spawned" in line:
                break
        time.sleep(1)
        yield process


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(), ("--processes", "2")], ids=["one process", "workers"])
def test_a_test_that_is_stopped_early_reports_on_what_it_has(
    tmp_path: Path, silent_server: str, processes: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    with started_silent(out, silent_server, "--run-time", "300s", *processes) as process:
        process.terminate()
        process.communicate(timeout=60)
    found = json.loads((out / "results.json").read_text())
    assert found["totals"]["reasons"] == {"no answer when the test ended": 2}
    assert not found["met"]


@pytest.mark.slow
def test_what_workers_have_not_heard_when_the_test_ends_has_failed(
    tmp_path: Path, silent_server: str
) -> None:
    options = "--loop closed --processes 2 --users 4 --spawn-rate 4 --run-time 3s --stop-timeout 1"
    code, output, found = run(tmp_path, "--host", silent_server, *options.split())
    assert code == 1, output
    assert found["totals"]["reasons"] == {"no answer when the test ended": 4}
    assert "met     workers without their last outcomes: 0.00" in output


@pytest.mark.slow
def test_what_workers_hear_after_the_end_is_counted(tmp_path: Path, silent_server: str) -> None:
    options = (
        "--loop closed --processes 2 --users 4 --spawn-rate 4 --run-time 3s --answer-timeout 5"
    )
    code, output, found = run(tmp_path, "--host", silent_server, *options.split())
    assert code == 1, output
    assert list(found["totals"]["reasons"].values()) == [4]
    assert "no answer: TimeoutError" in next(iter(found["totals"]["reasons"]))


@pytest.mark.slow
def test_a_worker_that_dies_fails_the_run(tmp_path: Path, silent_server: str) -> None:
    out = tmp_path / "out"
    with started_silent(out, silent_server, "--processes", "2", "--run-time", "3s") as process:
        locust = psutil.Process(process.pid).children()[0]
        locust.children()[0].kill()
        assert process.wait(timeout=60) == 1
    found = json.loads((out / "results.json").read_text())
    silent = [check for check in found["checks"] if "last outcomes" in check["name"]]
    assert [(check["measured"], check["met"]) for check in silent] == [(1, False)]
