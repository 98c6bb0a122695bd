"""The gate lets through what is better beyond chance, for every group, and as fast; and says why not."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from training.gate import Decision, GateConfig, GateError, decide

UTTERANCES = 200
WORDS = 10
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """An evaluation as training.evaluate leaves it: errors of each utterance, ten words each."""

    def write(
        name: str,
        errors: Sequence[int],
        *,
        rtfx: float = 20.0,
        groups: Sequence[str] = ("",),
        speakers: Sequence[str] = ("",),
        test_set: str = "same",
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        metrics = {"data_fingerprint": test_set, "systems": {"accurate": {"rtfx": rtfx}}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        lines = [
            {
                "id": f"{number:03}.wav",
                "system": "accurate",
                "words": WORDS,
                "errors": wrong,
                "group": groups[number % len(groups)] or None,
                "speaker": speakers[number % len(speakers)] or None,
            }
            for number, wrong in enumerate(errors)
        ]
        (folder / "hypotheses.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        return folder

    return write


def judged(new: Path, old: Path | None, **values: Any) -> Decision:
    return decide(new, old, GateConfig(**values))


def failed(decision: Decision) -> list[str]:
    return [check.name for check in decision.checks if not check.passed]


def test_a_better_candidate_is_deployed_with_its_figures(write: Write) -> None:
    old = write("old", [2] * UTTERANCES)
    new = write("new", [1] * UTTERANCES)
    decision = judged(new, old)
    assert decision.deploy
    assert decision.reason == (
        "Deployed: WER 10.00% against 20.00%, difference -10.00 points"
        " (95 % interval -10.00 points to -10.00 points)."
    )


def test_a_worse_candidate_is_refused_and_the_reason_says_why(write: Write) -> None:
    old = write("old", [1] * UTTERANCES)
    new = write("new", [1, 2] * (UTTERANCES // 2))
    decision = judged(new, old)
    assert not decision.deploy
    assert failed(decision) == ["WER lower by the margin", "not by chance"]
    assert "15.00% against 10.00%: +5.00 points; asked are -0.20 points or lower" in decision.reason
    assert "**not met**" in decision.markdown() and decision.reason in decision.markdown()


def test_an_improvement_within_chance_is_refused(write: Write) -> None:
    """Ten utterances got one error less, nine one more: the mean is better, nothing is shown."""
    changes = [-1] * 10 + [1] * 4 + [0] * (UTTERANCES - 14)
    old = write("old", [2] * UTTERANCES)
    new = write("new", [2 + change for change in changes])
    decision = judged(new, old)
    assert failed(decision) == ["not by chance"]
    assert decision.difference is not None
    assert decision.difference.value < 0 < decision.difference.high


def test_utterances_are_compared_in_pairs(write: Write) -> None:
    """What is hard for both does not blur the difference: unpaired, these intervals overlap."""
    hard = [0, 9] * (UTTERANCES // 2)
    old = write("old", [errors + (n % 4 == 0) for n, errors in enumerate(hard)])
    new = write("new", hard)
    assert judged(new, old).deploy


def test_a_sure_improvement_below_the_margin_is_refused(write: Write) -> None:
    old = write("old", [2] * UTTERANCES)
    new = write("new", [2 - (n % 10 == 0) for n in range(UTTERANCES)])
    assert judged(new, old, min_improvement=0.009).deploy
    assert failed(judged(new, old, min_improvement=0.011)) == ["WER lower by the margin"]


def test_a_group_that_is_left_behind_stops_a_better_mean(write: Write) -> None:
    groups = ("north", "north", "north", "south")
    old = write("old", [3] * UTTERANCES, groups=groups)
    new = write("new", [4 if n % 4 == 3 else 0 for n in range(UTTERANCES)], groups=groups)
    decision = judged(new, old)
    assert failed(decision) == ["no speaker group much worse"]
    assert "south: +10.00 points" in decision.reason and "north" not in decision.reason
    assert judged(new, old, max_group_loss=0.11).deploy


def test_speakers_are_the_groups_where_there_are_none(write: Write) -> None:
    speakers = ("ann", "ben")
    old = write("old", [3] * UTTERANCES, speakers=speakers)
    new = write("new", [0, 4] * (UTTERANCES // 2), speakers=speakers)
    assert "ben" in judged(new, old).reason


def test_a_group_of_a_few_words_is_not_judged_and_that_is_said(write: Write) -> None:
    groups = ["large"] * (UTTERANCES - 1) + ["tiny"]
    old = write("old", [3] * UTTERANCES, groups=groups)
    new = write("new", [2] * (UTTERANCES - 1) + [9], groups=groups)
    decision = judged(new, old)
    assert decision.deploy
    assert "1 unnamed or below 100 words not judged" in decision.checks[2].finding


def test_a_slower_candidate_is_refused(write: Write) -> None:
    old = write("old", [2] * UTTERANCES, rtfx=20.0)
    assert judged(write("little", [1] * UTTERANCES, rtfx=17.1), old).deploy
    decision = judged(write("much", [1] * UTTERANCES, rtfx=16.9), old)
    assert failed(decision) == ["as fast"]
    assert "16.9 s of audio in a second against 20.0" in decision.reason


def test_a_first_version_only_has_to_be_good_enough(write: Write) -> None:
    new = write("new", [4] * UTTERANCES)
    assert judged(new, None).reason == (
        "Deployed as the first version: WER 40.00%, at most 50.00%."
    )
    assert not judged(new, None, highest_wer=0.3).deploy


def test_evaluations_of_other_recordings_are_not_compared(write: Write) -> None:
    old = write("old", [2] * UTTERANCES)
    with pytest.raises(GateError, match="of other recordings"):
        judged(write("fewer", [1] * 10), old)
    with pytest.raises(GateError, match="of other recordings"):
        judged(write("other", [1] * UTTERANCES, test_set="another"), old)


def test_a_mode_that_was_not_measured_is_named(write: Write) -> None:
    with pytest.raises(GateError, match="no figures of mode fast"):
        judged(write("new", [1]), None, mode="fast")


@pytest.mark.parametrize(
    "values", [{"min_improvement": -0.1}, {"max_slowdown": 1.0}, {"margin": 0.1}]
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        GateConfig(**values)
