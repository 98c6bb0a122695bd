import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from loadtest import capacity
from loadtest.capacity import (
    DEFAULT_CONFIG,
    HOUR,
    Plan,
    main,
    most_rate,
    most_rates,
    replicas_for,
    steady,
)
from loadtest.objectives import Latency, Objectives, judge
from loadtest.outcomes import Fate, Outcome
from loadtest.report import Results, write_results
from loadtest.service_time import ServiceTime
from loadtest.shapes import DAY
from loadtest.simulation import Pods, Simulated, simulate
from loadtest.watch import UNSEEN, Server

SERVICE = ServiceTime(
    per_batch=0.02,
    per_request=0.01,
    per_audio_second=0.01,
    per_longest_second=0.02,
    spread=0.1,
    piece_seconds=29.5,
    max_batch_seconds=120.0,
    measured={"machine": "none"},
)
PLAN = Plan(
    mix="command=60,sentence=40",
    objectives=Objectives(latency={"sentence": Latency(p95=1.0)}, most_refused=0.01),
)


def test_the_shipped_config_is_the_plan_that_the_class_describes() -> None:
    plan = Plan.model_validate(yaml.safe_load(DEFAULT_CONFIG.read_text()))
    assert plan.pods == Pods()
    assert plan.mix == Plan().mix and plan.lengths == Plan().lengths
    assert plan.targets == Plan().targets and plan.nodes == Plan().nodes


def test_the_day_is_a_share_of_the_peak_or_a_curve_of_ones_own() -> None:
    assert Plan(peak=3.0).rates == tuple(3.0 * share for share in DAY)
    rising = Plan(curve=tuple(range(24)), first_hour=4, last_hour=6)
    times = [arrival.time for arrival in rising.day(seed=0)]
    assert max(rising.rates) == 23.0
    assert sum(time < HOUR for time in times) == pytest.approx(4.5 * HOUR, rel=0.05)
    assert sum(time >= HOUR for time in times) == pytest.approx(5.5 * HOUR, rel=0.05)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"curve": (1.0, 2.0)}, "curve has 2 values"),
        ({"curve": (1.0,) * 24, "peak": 6.0}, "peak and curve are both given"),
        ({"curve": (1.0,) * 5 + (0.0,) * 19}, "no request from first_hour to last_hour"),
        ({"curve": (-1.0,) * 24}, "greater than or equal to 0"),
        ({"mix": "bad=100"}, "mix is bad=100 and has no audio"),
        ({"targets": (2.5, 4)}, "targets has 4, which the chart refuses.*give 2.5 at most"),
    ],
)
def test_what_cannot_be_planned_for_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Plan(**given)


def test_pods_have_the_settings_that_are_shipped() -> None:
    archive = yaml.safe_load(Path("handler/model-config.yaml").read_text())
    chart = yaml.safe_load(Path("helm/steno/values/cpu-dev.yaml").read_text())["server"]
    pods = Pods()
    assert pods.workers == chart["workers"]
    assert pods.batch_size == chart["batchSize"]
    assert pods.queue_size == chart["jobQueueSize"]
    assert 1000 * pods.max_batch_delay == archive["maxBatchDelay"]


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "RUN_REQUESTS", 250)
    monkeypatch.setattr(capacity, "WARM_UP", 10.0)


@pytest.mark.usefixtures("short_runs")
def test_chance_does_not_choose_the_highest_rate() -> None:
    found = [most_rate(PLAN, SERVICE, 1, seed) for seed in range(3)]
    rates = [rate for rate, _ in found]
    assert max(rates) / min(rates) < 1.1
    for seed, (rate, trial) in enumerate(found, 10):
        assert trial.met and trial.refused + trial.refused_margin <= 0.01
        assert steady(PLAN, SERVICE, 0.9 * rate, 1, seed).met
        assert not steady(PLAN, SERVICE, 1.15 * rate, 1, seed).met


def test_a_share_that_is_refused_by_chance_alone_is_not_met() -> None:
    runs = capacity._Runs(PLAN, duration=1.0, skip=0.0)
    for refused in (0, 9):
        fates: list[Fate] = ["refused"] * refused + ["answered"] * (1000 - refused)
        outcomes = [Outcome("sentence", 0.0, 0.5, 7.0, fate) for fate in fates]
        runs.add(Simulated(outcomes, [(0.0, 1)], ended=1.0))
    trial = runs.trial()
    assert trial.refused == pytest.approx(0.0045) and trial.refused < 0.01
    assert trial.refused_margin == pytest.approx(0.009)
    assert not trial.met


def test_speech_in_a_second_is_that_of_one_run_however_many_there_are() -> None:
    """Each run answers 10 times real time; many together must not count as many times that."""
    for limit, met in ((8.0, True), (12.0, False)):
        objectives = Objectives(least_rtfx=limit)
        plan = PLAN.model_copy(update={"objectives": objectives})
        runs = capacity._Runs(plan, duration=100.0, skip=0.0)
        for _ in range(8):
            outcomes = [Outcome("sentence", float(n), 1.0, 10.0, "answered") for n in range(100)]
            # Twice as much was sent as is answered, so that what is sent bounds nothing.
            outcomes += [Outcome("sentence", float(n), 0.0, 10.0, "refused") for n in range(100)]
            runs.add(Simulated(outcomes, [(0.0, 1)], ended=100.0))
        (lead,) = [
            lead
            for lead, check in zip(runs.leads(), runs._judged(runs._pooled()), strict=True)
            if check.name == "RTFx"
        ]
        assert (lead > 0) is met


def test_what_the_mix_lacks_is_not_judged() -> None:
    plan = PLAN.model_copy(update={"objectives": Plan().objectives, "mix": "sentence=100"})
    runs = capacity._Runs(plan, duration=1.0, skip=0.0)
    runs.add(Simulated([Outcome("sentence", 0.0, 0.5, 7.0, "answered")] * 100, [(0.0, 1)], [], 1.0))
    assert runs.trial().met


@pytest.mark.usefixtures("short_runs")
def test_what_is_answered_after_the_last_request_costs_nothing_more() -> None:
    """A batch takes 30 s, so the last answer is out long after the last request came."""
    slow = SERVICE.model_copy(update={"per_batch": 30.0})
    pods = Pods(queue_size=10_000)
    trial = steady(PLAN.model_copy(update={"pods": pods}), slow, 50.0, 2, seed=0)
    assert trial.mean_replicas == 2
    assert trial.cost_per_hour == pytest.approx(2 * pods.price_per_hour)
    assert trial.busy == pytest.approx(1, abs=0.05)


@pytest.mark.usefixtures("short_runs")
def test_the_pods_for_a_rate_are_enough_and_one_less_is_not() -> None:
    rate, _ = most_rate(PLAN, SERVICE, 1, seed=0)
    count, trial = replicas_for(PLAN, SERVICE, 3.5 * rate, rate, seed=0)
    assert trial.met and 3 <= count <= 5
    assert not steady(PLAN, SERVICE, 3.5 * rate, count - 1, seed=0).met


@pytest.mark.usefixtures("short_runs")
def test_pods_that_are_picked_at_random_hold_each_what_one_does_alone() -> None:
    alone = most_rate(PLAN, SERVICE, 1, seed=0)
    rates = most_rates(PLAN.model_copy(update={"nodes": (1, 5)}), SERVICE, alone, seed=0)
    assert rates == [(1, alone[0], alone[1]), (5, 5 * alone[0], alone[1])]
    assert steady(PLAN, SERVICE, 0.9 * 5 * alone[0], 5, seed=1).met
    assert not steady(PLAN, SERVICE, 1.15 * 5 * alone[0], 5, seed=1).met


@pytest.mark.usefixtures("short_runs")
def test_objectives_below_the_time_of_a_lone_request_are_said_to_be_impossible() -> None:
    tight = PLAN.model_copy(
        update={"objectives": Objectives(latency={"sentence": Latency(p95=0.001)})}
    )
    with pytest.raises(ValueError, match="tighter than the time of a lone request"):
        most_rate(tight, SERVICE, 1, seed=0)


@pytest.fixture
def service_file(tmp_path: Path) -> Path:
    path = tmp_path / "service_time.json"
    path.write_text(SERVICE.model_dump_json())
    return path


def write_test(folder: Path, loop: str, slower: float = 1.0, server: Server = UNSEEN) -> Path:
    """Results of a load test whose server was a simulated pod."""
    service = SERVICE.slowed(slower)
    found = simulate(PLAN.arrivals(1.0, 4000.0, seed=5), service, PLAN.pods, 1, seed=5)
    outcomes = [o._replace(due=o.due + 1.7e9) for o in found.outcomes]
    results = Results(
        {"host": "h", "loop": loop}, outcomes, [], judge(Objectives(), outcomes), server
    )
    return write_results(folder, results).with_name("results.json")


@pytest.mark.parametrize("slower", [1.0, 2.0])
def test_a_check_finds_a_server_that_is_as_simulated(
    tmp_path: Path, service_file: Path, capsys: pytest.CaptureFixture[str], slower: float
) -> None:
    results = write_test(tmp_path, "open", slower)
    document = tmp_path / "capacity.md"
    document.write_text("before\n<!-- check -->\n<!-- /check -->\nafter\n")
    command = ["check", str(results), "--service-time", str(service_file)]
    assert main([*command, "--document", str(document)]) == 0
    said = capsys.readouterr().out
    found = re.search(r"took ([\d.]+) times", said)
    assert found and float(found[1]) == pytest.approx(slower, rel=0.05)
    rows = [line.split("|") for line in said.splitlines() if "| p" in line]
    assert len(rows) == 4
    for row in rows:
        assert abs(float(row[6].strip(" %"))) <= 15
    assert "| sentence | p95 |" in document.read_text()


def test_a_check_of_a_server_that_was_never_idle_says_what_to_do(
    tmp_path: Path, service_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write_test(tmp_path, "open", slower=30.0)
    assert main(["check", str(results), "--service-time", str(service_file)]) == 1
    assert "lower --rate" in capsys.readouterr().err


@pytest.mark.parametrize("server", [Server(2, 4, 10), Server(workers=2)])
def test_a_check_of_the_server_that_is_planned_for_passes(
    tmp_path: Path, service_file: Path, server: Server
) -> None:
    results = write_test(tmp_path, "open", server=server)
    assert main(["check", str(results), "--service-time", str(service_file)]) == 0


def test_a_check_against_another_server_is_refused(
    tmp_path: Path, service_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write_test(tmp_path, "open", server=Server(2, 8, 64))
    assert main(["check", str(results), "--service-time", str(service_file)]) == 1
    assert "batch_size 8 and not 4, queue 64 and not 10;" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", '{"requests": 3}'])
def test_another_json_is_no_result(
    tmp_path: Path, service_file: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    results = tmp_path / "results.json"
    results.write_text(content)
    assert main(["check", str(results), "--service-time", str(service_file)]) == 1
    assert "results.json is no results.json of a load test" in capsys.readouterr().err


def test_a_closed_loop_cannot_be_replayed(
    tmp_path: Path, service_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write_test(tmp_path, "closed")
    assert main(["check", str(results), "--service-time", str(service_file)]) == 1
    assert "--loop open" in capsys.readouterr().err


def test_a_wrong_key_is_named(
    tmp_path: Path, service_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "plan.yaml"
    config.write_text(json.dumps({"peek": 3}))
    assert main(["plan", "--config", str(config), "--service-time", str(service_file)]) == 1
    assert "peek" in capsys.readouterr().err


def table_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def test_no_target_is_recommended_where_none_meets_the_objectives() -> None:
    trial = steady(PLAN, SERVICE, 50.0, 1, seed=0)
    assert not trial.met
    assert "None meets the objectives" in capacity._targets_table([(1.0, trial)])


def test_the_cost_is_of_an_hour() -> None:
    trial = steady(PLAN, SERVICE, 1.0, 3, seed=0)
    assert trial.cost_per_hour == pytest.approx(3 * PLAN.pods.price_per_hour, rel=0.02)


def test_a_small_plan_fills_its_document_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "RUN_REQUESTS", 200)
    monkeypatch.setattr(capacity, "RUNS", 8)
    monkeypatch.setattr(capacity, "MOST_SIMULATED", 2)
    measured = {"median_relative_error": 0.1, "largest_relative_error": 0.3, "date": "d"}
    service = tmp_path / "service_time.json"
    facts = {**measured, "command": "c", "machine": "m", "batches": 9}
    service.write_text(SERVICE.model_copy(update={"measured": facts}).model_dump_json())
    config = tmp_path / "plan.yaml"
    config.write_text(
        "peak: 3\nfirst_hour: 9\nlast_hour: 9.2\ntargets: [1, 2]\nnodes: [1, 3]\n"
        "objectives: {latency: {command: {p95: 4}}}\n"
    )
    names = ("service-time", "peak", "targets", "nodes")
    document = tmp_path / "capacity.md"
    document.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in names))
    plot = tmp_path / "plots" / "plan.svg"
    command = ["plan", "--config", str(config), "--service-time", str(service)]
    assert main([*command, "--document", str(document), "--plot", str(plot)]) == 0
    text = document.read_text()
    assert "requests in a second need **" in text
    targets = text.split("<!-- targets -->")[1].split("<!-- /targets -->")[0]
    costs = {row.split("|")[1].strip(): row.split("|")[9].strip() for row in table_rows(targets)}
    found = re.search(r"queuePerWorker=([\d.]+)`.* ([\d.]+) an hour", targets)
    assert found and costs[found[1]] == found[2] == min(costs.values())
    assert "| 3 |" in text.split("<!-- nodes -->")[1]
    assert plot.read_text().count("<svg") == 1
