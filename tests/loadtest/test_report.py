import re
from pathlib import Path

from loadtest.objectives import Latency, Objectives, judge
from loadtest.outcomes import Outcome
from loadtest.report import Results, read_outcomes, render, write_results
from loadtest.watch import Sample

FACTS = {"host": "http://127.0.0.1:1", "loop": "open", "run_time": None}
OUTCOMES = [
    *(Outcome("command", 100.0 + i / 4, 0.2 + i / 100, 3.0, "answered") for i in range(40)),
    Outcome("long", 105.0, 4.0, 60.0, "answered"),
    Outcome("bad", 106.0, 0.1, 0.0, "failed", "<script>alert(1)</script>"),
    Outcome("command", 107.0, 0.0, 3.0, "refused", "503: full"),
]
SAMPLES = [
    Sample(100.0 + i, float(min(i, 5)), i % 4, 1, 10**9 + i, 0.5 * i, float(i), 3.0 * i, 6.0 * i)
    for i in range(11)
]


def results(samples: list[Sample]) -> Results:
    return Results(FACTS, OUTCOMES, samples, judge(Objectives(least_rtfx=1e6), OUTCOMES))


def test_the_page_needs_nothing_else_and_escapes_what_the_server_said() -> None:
    page = render(results(SAMPLES))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert page.count("<svg") == 2
    assert "Objectives are missed" in page


def test_a_quantile_of_too_few_answers_is_said_to_be_one() -> None:
    objectives = Objectives(latency={"command": Latency(p95=9.0, p99=9.0)}, most_failed=1.0)
    page = render(Results(FACTS, OUTCOMES, SAMPLES, judge(objectives, OUTCOMES)))
    assert "The objectives are met" in page
    assert "<td>too few: 40 of 100</td>" in page
    assert "<td>(4.000)</td>" in page  # of the only long file
    few = render(Results(FACTS, [], [], judge(objectives, OUTCOMES[:1])))
    assert "Too few answers to decide" in few


def test_a_server_that_cannot_be_looked_into_is_said_to_be_out_of_reach() -> None:
    unseen = [Sample(sample.time, sample.load) for sample in SAMPLES]
    assert render(results(unseen)).count("out of reach") == 3
    assert "out of reach" not in render(results(SAMPLES))


def test_a_test_without_requests_still_has_a_page() -> None:
    page = render(Results(FACTS, [], [], judge(Objectives(), [])))
    assert "Objectives are missed" in page and "<svg" not in page


def test_outcomes_come_back_from_the_file(tmp_path: Path) -> None:
    page = write_results(tmp_path / "new" / "folder", results(SAMPLES))
    assert page.is_file()
    assert read_outcomes(page.with_name("results.json")) == OUTCOMES
