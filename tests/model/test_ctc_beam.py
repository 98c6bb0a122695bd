"""CTC beam search, beside the sum over all paths."""

import re
from itertools import groupby, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.ctc_beam import CTCBeamSearch
from model.hotwords import Hotword, LetterBias
from model.tokenizer import Characters

AB = Characters(" ab")
NO_WORDS = LetterBias([], AB)


def beam_ctc(logprobs: torch.Tensor, characters: Characters, bias: LetterBias) -> str:
    return CTCBeamSearch(characters, bias, None)(logprobs)


def totals_of_texts(logprobs: torch.Tensor) -> dict[str, float]:
    """Sum all paths by the text that they spell."""
    totals: dict[str, float] = {}
    for path in product(range(logprobs.shape[1]), repeat=len(logprobs)):
        probability = logprobs[range(len(path)), list(path)].exp().prod().item()
        labels = [label for label, _ in groupby(path) if label != Characters.BLANK]
        # A space at the end is a text of its own in the search.
        text = re.sub(" +", " ", AB.decode(labels)).lstrip()
        totals[text] = totals.get(text, 0.0) + probability
    return totals


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**32))
def test_finds_the_text_whose_paths_are_together_the_most_probable(frames: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(frames, len(AB), generator=generator).log_softmax(-1)
    totals = totals_of_texts(logprobs)
    found = beam_ctc(logprobs, AB, NO_WORDS)
    highest = max(totals.values())
    assert max(totals[found], totals.get(f"{found} ", 0.0)) == pytest.approx(highest, rel=0.01)


def frames_of(text: str, unsure: dict[int, tuple[str, float]], characters: Characters):
    """Log-probabilities that spell a text; at some places another letter is likelier."""
    rows = []
    for place, label in enumerate(characters.encode(text)):
        row = torch.full((len(characters),), 1e-4)
        row[label] = 1.0
        if place in unsure:
            letter, probability = unsure[place]
            row[label] = 1 - probability
            row[characters.encode(letter)[0]] = probability
        blank = torch.full((len(characters),), 1e-6)
        blank[Characters.BLANK] = 1.0
        rows += [row, blank]
    return (torch.stack(rows) / torch.stack(rows).sum(-1, keepdim=True)).log()


def test_a_hot_word_is_written_where_the_audio_is_unsure_and_only_there() -> None:
    characters = Characters()
    plain = LetterBias([], characters)
    hot = LetterBias([Hotword("steno")], characters)
    unsure = frames_of("the steno works", {5: ("d", 0.9), 7: ("m", 0.8)}, characters)
    assert beam_ctc(unsure, characters, plain) == "the sdemo works"
    assert beam_ctc(unsure, characters, hot) == "the steno works"
    sure = frames_of("the stone works", {}, characters)
    assert beam_ctc(sure, characters, hot) == "the stone works"


def test_a_letter_said_twice_stays_two_across_certain_blanks() -> None:
    characters = Characters()
    plain = LetterBias([], characters)
    assert beam_ctc(frames_of("tall hall", {}, characters), characters, plain) == "tall hall"


def test_nothing_but_blanks_is_no_text() -> None:
    blanks = torch.tensor([[0.999, 0.0005, 0.0003, 0.0002]] * 4).log()
    assert beam_ctc(blanks, AB, NO_WORDS) == ""
    assert beam_ctc(blanks[:0], AB, NO_WORDS) == ""
