from pathlib import Path

import pytest
from pydantic import ValidationError

from loadtest.objectives import (
    DEFAULT,
    Check,
    Latency,
    Objectives,
    judge,
    read_objectives,
    verdict_of,
)
from loadtest.outcomes import Fate, Outcome, lone, summarize, total
from loadtest.recordings import Kind


def outcome(kind: Kind, seconds: float, fate: Fate = "answered", due: float = 0.0) -> Outcome:
    return Outcome(kind, due, seconds, 2.0, fate, "" if fate == "answered" else "why")


def test_the_shipped_objectives_are_read() -> None:
    objectives = read_objectives(DEFAULT)
    assert set(objectives.latency) == {"command", "sentence", "long", "bad"}
    assert objectives.most_failed == 0


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("most_fail: 0", "most_fail"),
        ("latency: {command: {p90: 1}}", "p90"),
        ("latency: {song: {p95: 1}}", "song"),
        ("latency: {command: {p50: 2, p95: 1}}", "higher quantile"),
        ("most_refused: 2", "most_refused"),
        ("latency: [", "flow node"),
    ],
)
def test_a_wrong_file_is_refused_and_named(tmp_path: Path, text: str, names: str) -> None:
    path = tmp_path / "objectives.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=names) as caught:
        read_objectives(path)
    assert str(path) in str(caught.value)


def test_an_objective_is_met_up_to_its_limit_and_missed_beyond() -> None:
    outcomes = [outcome("command", seconds / 100) for seconds in range(1, 101)]
    limits = Objectives(latency={"command": Latency(p50=0.51, p95=0.90)}, least_rtfx=100)
    found = {check.name: check for check in judge(limits, outcomes)}
    assert found["p50 of command"].met
    assert not found["p95 of command"].met
    assert found["p95 of command"].measured == pytest.approx(0.95, abs=0.01)
    assert found["RTFx"].measured == pytest.approx(200)
    text = "MISSED  p95 of command: 0.95 s, wanted ≤ 0.90 s, n = 100"
    assert str(found["p95 of command"]) == text


def test_a_kind_without_an_answer_misses_its_objective() -> None:
    checks = judge(Objectives(latency={"long": Latency(p95=9)}), [outcome("long", 1.0, "failed")])
    assert [check.met for check in checks if check.name == "p95 of long"] == [False]


@pytest.mark.parametrize(("quantile", "least"), [("p50", 2), ("p95", 20), ("p99", 100)])
def test_a_quantile_of_too_few_answers_is_neither_met_nor_missed(quantile: str, least: int) -> None:
    limits = Objectives(latency={"command": Latency.model_validate({quantile: 1.0})})

    def check(answered: int, seconds: float) -> Check:
        sent = [outcome("command", seconds) for _ in range(answered)]
        refused = [outcome("command", 0.0, "refused") for _ in range(100)]
        return judge(limits, sent + refused)[0]

    assert check(least, 0.5).verdict == "met"
    assert check(least, 1.5).verdict == "missed"
    few = check(least - 1, 1.5)
    assert few.verdict == "too few" and not few.met
    assert str(few) == f"too few {quantile} of command: {least - 1} of {least}, wanted ≤ 1.00 s"


def test_a_test_is_met_when_nothing_is_missed_and_some_quantile_is_decided() -> None:
    limits = Objectives(latency={"command": Latency(p50=1.0, p99=2.0)})

    def verdict(*seconds: float) -> str:
        return verdict_of(judge(limits, [outcome("command", own) for own in seconds]))

    assert verdict(0.5, 0.5) == "met"
    assert verdict(0.5) == "too few"
    assert verdict(1.5, 1.5) == "missed"
    assert verdict() == "missed"
    assert verdict_of(judge(Objectives(), [outcome("command", 9.0)])) == "met"


def test_a_kind_that_is_not_in_the_mix_is_not_judged() -> None:
    limits = Objectives(latency={"command": Latency(p50=1), "long": Latency(p95=9)})
    outcomes = [outcome("command", 0.5), outcome("command", 0.5)]
    names = [check.name for check in judge(limits, outcomes, ["command"])]
    assert "p50 of command" in names and "p95 of long" not in names
    assert verdict_of(judge(limits, outcomes, ["command"])) == "met"
    assert verdict_of(judge(limits, outcomes, ["command", "long"])) == "missed"


def test_in_the_open_loop_no_more_audio_is_wanted_than_is_offered() -> None:
    def rtfx(seconds: float, open_loop: bool) -> Check:
        sent = [outcome("command", seconds, due=float(due)) for due in range(61)]  # 2 s in each
        return judge(Objectives(least_rtfx=10), sent, open_loop=open_loop)[-1]

    assert rtfx(1.0, open_loop=True).limit == pytest.approx(0.8 * 61 * 2 / 60)
    assert rtfx(1.0, open_loop=True).met
    assert not rtfx(30.0, open_loop=True).met  # the answers come much later than the requests
    assert not rtfx(1.0, open_loop=False).met
    less = Objectives(least_rtfx=1)
    assert judge(less, [outcome("command", 1.0)] * 2, open_loop=True)[-1].limit == 1


def test_refusals_and_failures_are_counted_apart_and_their_times_not_at_all() -> None:
    outcomes = [
        *(outcome("command", 1.0) for _ in range(8)),
        outcome("command", 0.001, "refused"),
        outcome("command", 600.0, "failed"),
    ]
    found = {c.name: c for c in judge(Objectives(most_failed=0.05, most_refused=0.1), outcomes)}
    assert found["failed"].measured == found["refused"].measured == 0.1
    assert not found["failed"].met and found["refused"].met
    own = summarize(outcomes)["command"]
    assert own.latency == {"p50": 1.0, "p95": 1.0, "p99": 1.0}
    assert total(outcomes).reasons == {"why": 1}


def test_the_slowest_refusal_counts_and_none_is_no_overload() -> None:
    objectives = Objectives(slowest_refusal=0.5)

    def check(*outcomes: Outcome) -> bool:
        found = {c.name: c for c in judge(objectives, outcomes)}
        return found["slowest refusal"].met

    answered = outcome("command", 9.0)
    assert check(answered, outcome("command", 0.01, "refused"), outcome("bad", 0.5, "refused"))
    assert not check(answered, outcome("command", 0.01, "refused"), outcome("bad", 0.6, "refused"))
    assert not check(answered)


def test_the_objectives_of_an_overload_are_those_of_every_day_but_for_the_median() -> None:
    overload = read_objectives(DEFAULT.with_name("overload.yaml"))
    usual = read_objectives(DEFAULT)
    for kind, latency in overload.latency.items():
        assert latency == usual.latency[kind].model_copy(update={"p50": None})


def test_no_request_at_all_is_no_success() -> None:
    assert not any(check.met for check in judge(Objectives(least_rtfx=1), []))


def test_impossible_objectives_are_refused() -> None:
    with pytest.raises(ValidationError):
        Objectives(least_rtfx=-1)


def test_lone_requests_are_those_whose_time_no_other_shares() -> None:
    times = [(0.0, 1.0), (2.0, 9.0), (3.0, 1.0), (10.5, 1.0), (11.0, 2.0), (14.0, 1.0)]
    outcomes = [outcome("command", seconds, due=due) for due, seconds in times]
    assert [own.due for own in lone(reversed(outcomes))] == [0.0, 14.0]
    assert lone([]) == []
