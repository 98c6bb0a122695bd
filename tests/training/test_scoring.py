"""Scoring: rates, intervals and alignments of texts whose errors are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.scoring import (
    AlignedWord,
    Confusion,
    Pair,
    ScoringError,
    bootstrap_interval,
    repeated_words,
    score,
)


def pair(reference: str, hypothesis: str, **values: object) -> Pair:
    known = {"id": "a.wav", "duration": 1.0, "speaker": None, **values}
    return Pair(reference=reference, hypothesis=hypothesis, **known)  # type: ignore[arg-type]


def test_capitals_punctuation_and_spelling_are_no_errors() -> None:
    scores = score([pair("mister quilter's colours", "Mr. Quilter's colors!")])
    assert scores.wer.value == scores.cer.value == 0


def test_word_errors_are_counted_by_kind() -> None:
    scores = score([pair("one cat sat on the mat", "one hat sat on the blue mat again")])
    assert (scores.wer.errors, scores.wer.total) == (3, 6)
    assert scores.count("substitute") == 1
    assert scores.count("insert") == 2
    assert scores.count("delete") == 0
    assert scores.count("equal") == 5


def test_character_errors_are_counted_with_spaces() -> None:
    scores = score([pair("the cat", "the cart"), pair("the cat", "thecat")])
    assert (scores.cer.errors, scores.cer.total) == (2, 14)


def test_words_are_aligned_one_by_one() -> None:
    (scored,) = score([pair("a quick brown fox", "quick red fox jumps")]).utterances
    assert scored.alignment == (
        AlignedWord("delete", "a", None),
        AlignedWord("equal", "quick", "quick"),
        AlignedWord("substitute", "brown", "red"),
        AlignedWord("equal", "fox", "fox"),
        AlignedWord("insert", None, "jumps"),
    )


words = st.lists(st.sampled_from(["cat", "dog", "sat", "ran"]), max_size=8).map(" ".join)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=6))
def test_an_alignment_spells_both_texts_and_its_errors_add_up(
    texts: list[tuple[str, str]],
) -> None:
    if not any(reference for reference, _ in texts):
        return
    scores = score([pair(*entry) for entry in texts])
    for scored in (*scores.utterances, *scores.empty_references):
        said = [word.reference for word in scored.alignment if word.reference is not None]
        heard = [word.hypothesis for word in scored.alignment if word.hypothesis is not None]
        assert said == scored.pair.reference.split()
        assert heard == scored.pair.hypothesis.split()
    assert scores.wer.errors == sum(scored.word_errors for scored in scores.utterances)
    assert len(scores.utterances) + len(scores.empty_references) == len(texts)


def test_a_reference_that_the_normalizer_empties_is_named_and_in_no_rate() -> None:
    scores = score([pair("cat", "cat"), pair("uh hmm", "something", id="hesitation.wav")])
    assert [scored.pair.id for scored in scores.empty_references] == ["hesitation.wav"]
    assert (scores.wer.errors, scores.wer.total, scores.wer.utterances) == (0, 1, 1)


def test_references_without_any_word_cannot_be_scored() -> None:
    with pytest.raises(ScoringError, match="none of the 1 references has a word left"):
        score([pair("uh", "something")])


def test_an_empty_hypothesis_is_all_deletions_and_is_flagged() -> None:
    scores = score([pair("two words", "")])
    assert scores.wer.value == 1
    assert scores.count("delete") == 2
    assert [scored.pair.id for scored in scores.empty] == ["a.wav"]


def test_rates_are_given_for_each_speaker_and_duration_class() -> None:
    scores = score(
        [
            pair("cat dog", "cat cow", speaker="7", duration=4.99),
            pair("cat", "cat", speaker="3", duration=5.0),
            pair("cat", "cat", speaker=None, duration=25.0),
        ]
    )
    speakers = {name: (rate.errors, rate.total) for name, rate in scores.by_speaker.items()}
    assert speakers == {"": (0, 1), "3": (0, 1), "7": (1, 2)}
    durations = {name: (rate.errors, rate.seconds) for name, rate in scores.by_duration.items()}
    assert durations == {"< 5 s": (1, 4.99), "5–10 s": (0, 5.0), "≥ 20 s": (0, 25.0)}


def test_confusions_are_ranked_by_how_often_they_happen() -> None:
    scores = score(
        [pair("cat", "hat"), pair("cat", "hat"), pair("cat", "bat"), pair("cat and", "cat")]
    )
    assert scores.confusions("substitute") == [
        Confusion("cat", "hat", 2),
        Confusion("cat", "bat", 1),
    ]
    assert scores.confusions("delete") == [Confusion("and", None, 1)]
    assert scores.confusions("insert") == []


def test_the_worst_utterances_have_the_most_errors() -> None:
    scores = score(
        [
            pair("cat", "cat", id="right"),
            pair("cat dog cow", "cat dog hen", id="one of three"),
            pair("cat", "hat", id="one of one"),
            pair("cat dog", "hen cow", id="two"),
        ]
    )
    assert [scored.pair.id for scored in scores.worst()] == ["two", "one of one", "one of three"]
    assert len(scores.worst(most=1)) == 1


def test_the_interval_of_a_mean_is_the_one_that_statistics_gives() -> None:
    errors = np.random.default_rng(7).integers(0, 2, 1000)
    low, high = bootstrap_interval(errors.tolist(), [1] * 1000, seed=0)
    mean, deviation = errors.mean(), errors.std() / 1000**0.5
    assert low == pytest.approx(mean - 1.96 * deviation, abs=0.002)
    assert high == pytest.approx(mean + 1.96 * deviation, abs=0.002)


def test_the_interval_is_the_same_each_time_and_follows_the_seed() -> None:
    errors, totals = list(range(50)), list(range(51, 101))
    first = bootstrap_interval(errors, totals, seed=0)
    assert bootstrap_interval(errors, totals, seed=0) == first
    assert bootstrap_interval(errors, totals, seed=1) != first


@pytest.mark.parametrize(("items", "student"), [(3, 4.303), (6, 2.571), (30, 2.045)])
def test_an_interval_of_few_is_as_wide_as_students(items: int, student: float) -> None:
    """Without the widening, three items miss the truth in every fourth case and not in every 20th."""
    errors = np.random.default_rng(3).normal(5, 1, items)
    low, high = bootstrap_interval(errors.tolist(), [1] * items, seed=0, few=True)
    expected = 2 * student * errors.std(ddof=1) / items**0.5
    assert high - low == pytest.approx(expected, rel=0.15)
    assert bootstrap_interval([1], [2], seed=0, few=True) == (-np.inf, np.inf)


def test_a_higher_confidence_is_a_wider_interval() -> None:
    errors, totals = list(range(50)), [100] * 50
    low, high = bootstrap_interval(errors, totals, seed=0)
    lower, higher = bootstrap_interval(errors, totals, seed=0, confidence=0.99)
    assert lower < low < high < higher


def test_long_utterances_weigh_more_in_the_interval() -> None:
    low, high = bootstrap_interval([0, 100], [1, 100], seed=0)
    assert low == 0 and high == 1
    alike = bootstrap_interval([1, 2, 3], [10, 20, 30], seed=0)
    assert alike == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ("", 0),
        ("the cat sat on the mat", 0),
        ("no no no", 2),
        ("a b a b a b", 4),
        ("a b a b a", 2),
        ("so it goes on and on and on and on it goes", 4),
    ],
)
def test_repeated_words_are_counted(text: str, repeated: int) -> None:
    assert repeated_words(text.split()) == repeated


def test_a_text_in_circles_is_flagged() -> None:
    circles = "and then " * 8
    assert score([pair("and then it stopped", circles)]).looped


def test_a_word_in_circles_is_flagged() -> None:
    assert score([pair("laughter", "h" + "a" * 200)]).looped


def test_a_text_that_was_said_in_circles_is_not_flagged() -> None:
    said = "never " * 9
    assert not score([pair(said, said)]).looped
    assert not score([pair("no no no", "No, no, no.")]).looped
