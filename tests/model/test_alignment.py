"""Words get the times at which the CTC head heard them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.alignment import START_LAG_SECONDS, AlignmentError, align_words
from model.tokenizer import Characters

CHARACTERS = Characters()


def heard(text: str, frames_each: int = 2, sure: float = 0.9) -> torch.Tensor:
    """Log-probabilities of a head that hears each character for one frame, then blanks."""
    labels = [
        label
        for c in text
        for label in [CHARACTERS.characters.index(c) + 1] + [0] * (frames_each - 1)
    ]
    rest = (1 - sure) / (len(CHARACTERS) - 1)
    rows = torch.full((len(labels), len(CHARACTERS)), rest)
    rows[torch.arange(len(labels)), torch.tensor(labels)] = sure
    return rows.log()


def test_times_are_the_frames_of_the_first_and_last_character():
    words = align_words(heard("so be it"), "So be it.", CHARACTERS)
    assert [w.word for w in words] == ["So", "be", "it."]
    assert [w.start for w in words] == pytest.approx(
        [0.0, 0.12 - START_LAG_SECONDS, 0.24 - START_LAG_SECONDS]
    )
    assert [w.end for w in words] == pytest.approx([0.06, 0.18, 0.30], abs=0.021)
    assert all(w.confidence == pytest.approx(0.9, abs=0.01) for w in words)


def test_a_word_that_was_not_heard_has_a_low_confidence():
    right, wrong = (
        align_words(heard("so be it"), t, CHARACTERS)[1] for t in ("so be it", "so xy it")
    )
    assert wrong.confidence < 0.1 < right.confidence


def test_a_number_is_aligned_with_whatever_was_heard():
    before, number, after = align_words(heard("in twenty days"), "in 20 days", CHARACTERS)
    assert before.end <= number.start < number.end <= after.start
    assert number.word == "20"
    assert before.start == 0.0
    assert after.start == pytest.approx(10 * 0.04 - START_LAG_SECONDS, abs=0.021)


def test_a_dash_stays_with_the_word_before_it():
    words = align_words(heard("yes no"), "Yes - no", CHARACTERS)
    assert [w.word for w in words] == ["Yes -", "no"]


def test_a_text_without_words_has_none():
    assert align_words(heard("yes"), "...", CHARACTERS) == []


def test_refuses_a_text_that_cannot_fit():
    with pytest.raises(AlignmentError, match="11 characters does not fit into 6 frames"):
        align_words(heard("yes"), "hello there", CHARACTERS)


@given(
    st.lists(st.text("abcdefghij'", min_size=1, max_size=6), min_size=1, max_size=8),
    st.integers(0, 99),
)
def test_words_keep_their_order_and_their_text(words, seed):
    text = " ".join(words)
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(150, len(CHARACTERS), generator=generator).log_softmax(-1)
    found = align_words(logprobs, text, CHARACTERS)
    spelled = [w for w in words if CHARACTERS.spell(w)]
    assert [w for f in found for w in f.word.split() if CHARACTERS.spell(w)] == spelled
    times = [t for f in found for t in (f.start, f.end)]
    assert times == sorted(times)
    assert all(0 <= f.confidence <= 1 for f in found)
