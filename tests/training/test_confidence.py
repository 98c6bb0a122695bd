"""Confidences: which words are right, how far off confidences are, and what a calibration mends."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint import load_checkpoint
from model.confidence import Calibration, Calibrations
from model.transcript import Segment, Transcript, Word
from tests.random_checkpoint import SHIPPED, make_random_checkpoint
from training.confidence import (
    ConfidenceConfig,
    ConfidenceError,
    Judged,
    calibrate,
    cross_calibrated,
    examine,
    fit_calibration,
    judge,
    judge_all,
    main,
    markdown,
    reliability,
    write,
)
from training.manifest import Utterance
from training.scoring import Pair, score

FIXTURES = Path(__file__).parents[1] / "fixtures" / "manifest.jsonl"


def judged_words(reference: str, hypothesis: str) -> dict[str, bool]:
    """Whether each written word is right; its place is its confidence."""
    written = hypothesis.split()
    words = [Word(word, place, place + 1, place / 100) for place, word in enumerate(written)]
    (scored,) = score([Pair("a", reference, hypothesis, 1.0)]).utterances
    return {written[round(100 * c)]: right for c, right in judge(words, scored)}


def test_a_word_is_right_if_it_stands_in_the_reference():
    assert judged_words("the cat sat", "The fat cat sat.") == {
        "The": True,
        "fat": False,
        "cat": True,
        "sat.": True,
    }


def test_a_word_that_was_missed_makes_no_other_wrong():
    assert judged_words("the cat sat down", "The cat down.") == {
        "The": True,
        "cat": True,
        "down.": True,
    }


def test_a_word_that_becomes_two_is_right_only_as_a_whole():
    assert judged_words("we do not know", "We don't know") == {
        "We": True,
        "don't": True,
        "know": True,
    }
    assert not judged_words("we do know", "We don't know")["don't"]


def test_words_that_become_one_are_right_together():
    right = judged_words("it is 21 now", "It is twenty one now")
    assert right == {"It": True, "is": True, "twenty": True, "one": True, "now": True}
    wrong = judged_words("it is 22 now", "It is twenty one now")
    assert wrong == {"It": True, "is": True, "twenty": False, "one": False, "now": True}


def test_a_hesitation_is_not_judged():
    assert judged_words("yes we can", "Yes, uh we can") == {"Yes,": True, "we": True, "can": True}


def transcript(*words: tuple[str, float]) -> Transcript:
    timed = tuple(Word(word, i, i + 1, sure) for i, (word, sure) in enumerate(words))
    text = " ".join(word for word, _ in words)
    segment = Segment(0, 0.0, len(words), text, (), 0.0, 1.0, 0.0, timed)
    return Transcript(text, "english", float(len(words)), (segment,))


def test_the_words_of_all_clips_are_judged_each_for_its_speaker():
    judged = judge_all(
        [
            (
                Utterance(Path("a.wav"), 2.0, "good day", "anna"),
                transcript(("Good", 0.9), ("hay", 0.2)),
            ),
            (Utterance(Path("b.wav"), 1.0, "uh", None), transcript(("Bye", 0.5))),
        ]
    )
    assert judged.confidence.tolist() == [0.9, 0.2, 0.5]
    assert judged.right.tolist() == [True, False, False]
    assert judged.speaker.tolist() == ["anna", "anna", "b.wav"]


def test_words_of_which_none_is_wrong_cannot_be_judged():
    clip = (Utterance(Path("a.wav"), 1.0, "yes", "anna"), transcript(("Yes", 0.9)))
    with pytest.raises(ConfidenceError, match="all of 1 recognized words are right"):
        judge_all([clip])


def test_the_calibration_error_weighs_the_bins_by_their_words():
    confidence = np.array([0.95] * 8 + [0.5] * 2)
    right = np.array([True] * 6 + [False] * 2 + [True, False])
    measured = reliability(confidence, right)
    assert measured.ece == pytest.approx(0.8 * (0.95 - 0.75) + 0.2 * 0.0)
    assert [(b.words, b.right) for b in measured.bins] == [(2, 0.5), (8, 0.75)]


def test_a_confidence_of_one_is_in_the_last_bin():
    measured = reliability(np.array([1.0, 0.99, 0.0]), np.array([True, True, False]))
    assert [b.words for b in measured.bins] == [1, 2]


def test_a_constant_is_calibrated_and_tells_nothing():
    right = np.array([True, True, True, False])
    measured = reliability(np.full(4, 0.75), right)
    assert measured.ece == 0
    assert measured.nce == pytest.approx(0)
    assert reliability(np.where(right, 0.99, 0.01), right).nce > 0.9
    assert reliability(np.where(right, 0.4, 0.6), right).nce < 0


def overconfident(words: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Words with confidences of one chance, right with another: its logit is 0.5 x - 1."""
    rng = np.random.default_rng(seed)
    confidence = 1 / (1 + np.exp(-rng.normal(2, 2, words)))
    return confidence, rng.random(words) < Calibration(0.5, -1.0)(confidence)


def test_a_fit_finds_the_line_that_the_words_were_drawn_with():
    found = fit_calibration(*overconfident(20_000, seed=0))
    assert (found.slope, found.offset) == pytest.approx((0.5, -1.0), abs=0.1)


def test_a_calibration_keeps_the_order_and_the_range():
    confidence = np.linspace(0, 1, 101)
    calibrated = Calibration(0.5, -1.0)(confidence)
    assert (np.diff(calibrated[1:-1]) > 0).all() and (np.diff(calibrated) >= 0).all()
    assert 0 < calibrated.min() < calibrated.max() < 1
    assert Calibration(1.0, 0.0)(confidence[1:-1]) == pytest.approx(confidence[1:-1])


def test_words_that_a_threshold_tells_apart_have_a_finite_fit():
    found = fit_calibration(np.array([0.2, 0.3, 0.8, 0.9]), np.array([False, False, True, True]))
    assert np.isfinite([found.slope, found.offset]).all()


def test_confidences_that_mislead_are_refused():
    with pytest.raises(ConfidenceError, match="right words do not have the higher confidences"):
        fit_calibration(
            np.array([0.9, 0.8, 0.2, 0.1] * 9), np.array([False, False, True, True] * 9)
        )


def test_no_word_is_calibrated_by_a_fit_on_its_own_speaker():
    confidence, right = overconfident(200, seed=1)
    speaker = np.array(["anna", "ben"] * 100)
    anna = speaker == "anna"
    calibrated = cross_calibrated(Judged(confidence, right, speaker))
    for own in (anna, ~anna):
        expected = fit_calibration(confidence[~own], right[~own])(confidence[own])
        assert calibrated[own] == pytest.approx(expected)


def test_a_calibration_mends_what_is_overconfident():
    confidence, right = overconfident(3_000, seed=2)
    speaker = np.array([f"{i % 25}" for i in range(3_000)])
    result = examine(Judged(confidence, right, speaker), fit=True)
    assert result.as_given.ece > 0.2
    assert result.calibrated is not None and result.calibrated.ece < 0.05
    assert result.calibrated.nce > 0 > result.as_given.nce


def test_one_speaker_is_not_enough_for_a_calibration():
    confidence, right = overconfident(50, seed=3)
    with pytest.raises(ConfidenceError, match="all words are of anna"):
        cross_calibrated(Judged(confidence, right, np.array(["anna"] * 50)))


def test_a_calibration_is_written_into_the_checkpoint_and_nothing_else_is_touched(
    tmp_path: Path,
) -> None:
    folder = make_random_checkpoint(tmp_path / "random")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    speaker = np.array(["anna", "ben"] * 100)
    result = examine(Judged(*overconfident(200, seed=5), speaker), fit=True)
    calibrate(folder, {"accurate": result})
    assert load_checkpoint(folder).config.calibration == Calibrations(accurate=result.calibration)
    other = examine(Judged(*overconfident(200, seed=6), speaker), fit=True)
    calibrate(folder, {"fast": other})
    fitted = load_checkpoint(folder).config.calibration
    assert fitted == Calibrations(accurate=result.calibration, fast=other.calibration)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"config.json"}


def test_figures_diagram_and_table_are_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Words\n<!-- confidence -->\n<!-- /confidence -->\n")
    config = ConfidenceConfig(
        checkpoint=SHIPPED,
        manifest=FIXTURES,
        output=tmp_path / "out",
        fit=True,
        document=page,
    )
    speaker = np.array(["anna", "ben"] * 100)
    result = examine(Judged(*overconfident(200, seed=4), speaker), fit=True)
    write(config, {"command": "as typed"}, {"fast": result})
    facts = json.loads((tmp_path / "out" / "confidence.json").read_text())
    assert facts["command"] == "as typed"
    fast = facts["modes"]["fast"]
    assert sum(b["words"] for b in fast["as_given"]["bins"]) == fast["words"] == 200
    assert result.calibration is not None
    assert fast["calibration"] == asdict(result.calibration)
    assert (tmp_path / "out" / "confidence.png").read_bytes().startswith(b"\x89PNG")
    assert markdown({"fast": result}) in page.read_text()
    assert "| `fast`, fitted on other speakers | 200 |" in page.read_text()


def test_the_command_judges_the_words_of_a_checkpoint(tmp_path: Path, capsys) -> None:
    lines = [json.loads(line) for line in FIXTURES.open()]
    for line in lines:
        line["audio_filepath"] = str(FIXTURES.parent / line["audio_filepath"])
    lines[0]["text"] = "quite another text"  # so that there are wrong words, however good it is
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = f"--checkpoint {SHIPPED} --manifest {manifest} --output {tmp_path} --mode accurate"
    assert main(words.split()) == 0
    facts = json.loads((tmp_path / "confidence.json").read_text())
    assert facts["command"] == f"python -m training.confidence {words}"
    assert facts["modes"]["accurate"]["right"] > 0.5
    assert facts["modes"]["accurate"]["calibration"] is None
    assert capsys.readouterr().out.startswith("| | words | right | ECE | NCE |")


def test_a_checkpoint_that_hears_nothing_right_is_reported(tmp_path: Path, capsys) -> None:
    checkpoint = make_random_checkpoint(tmp_path / "random")
    words = f"--checkpoint {checkpoint} --manifest {FIXTURES} --output {tmp_path} --limit 1"
    assert main([*words.split(), "--mode", "fast"]) == 1
    assert "confidence: all of" in capsys.readouterr().err
