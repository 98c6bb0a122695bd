"""Reconsidered texts: the most probable one of those that depart from the greedy one in one place."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.draft import Draft
from model.hypothesis import (
    GIVE_UP_TOKENS,
    MOST_RIVALS,
    REJOINED_TOKENS,
    Hypothesis,
    Rest,
)
from model.search import greedy_search
from model.tokenizer import Tokenizer
from tests.random_checkpoint import SHIPPED

END = 0
WORDS = range(100)  # tokens that begin a word: all
# What a decoder says after some tokens: the best one, its probability, the second-best and its.
Says = Callable[[Sequence[int]], tuple[int, float, int, float]]


def written(says: Says, limit: int = 100) -> tuple[Hypothesis, list[list[int]]]:
    """Write a text a token at a time; also every text that was begun."""
    text = Hypothesis([], limit, END, WORDS, None, reconsider=True)
    begun = [[]]
    while not text.ended:
        before = list(text.tokens)
        token, probability, rival, second = says(before)
        logprob = math.log(probability)
        asked = (rival, second / probability) if text.doubts(logprob) else None
        if not text.write(token, logprob, asked) and not text.ended:
            begun.append(list(text.tokens))
    return text, begun


def of_clip(tokenizer: Tokenizer, heard: str, *, reconsider: bool) -> Hypothesis:
    """The text of a clip in which this was heard."""
    draft = Draft(heard, tokenizer)
    return Hypothesis([], 100, tokenizer.end, tokenizer.word_starts, draft, reconsider)


def sure(text: Sequence[int]) -> Says:
    """A decoder that writes one text, whatever was written, and is sure of it."""
    return lambda before: ([*text, END][len(before)], 0.99, 99, 0.001)


@pytest.mark.parametrize(("heard", "kept"), [("turn off the lights in the hall", 7), ("turn", 1)])
def test_an_early_end_wins_only_where_nothing_more_was_heard(heard: str, kept: int) -> None:
    tokenizer = load_checkpoint(SHIPPED).tokenizer
    tokens = tokenizer.encode("turn off the lights in the hall")
    text = of_clip(tokenizer, heard, reconsider=True)
    for place, token in enumerate([*tokens, tokenizer.end]):
        doubt = (tokenizer.end, 0.5) if place == 1 else None
        text.write(token, math.log(0.6), doubt)  # of each factor below one the whole has seven more
    assert text.ended
    assert len(text.tokens) == kept


def test_a_text_without_doubt_is_written_once():
    text, begun = written(sure([1, 2, 3]))
    assert text.tokens == [1, 2, 3]
    assert len(text.logprobs) == 4
    assert begun == [[]]


@pytest.mark.parametrize(
    ("heard", "times", "looped"),
    [
        ("turn off the lights", 2, True),
        ("turn off the ligts", 2, True),
        ("turn off the lights turn off the lights", 3, True),
        ("turn off the lights turn off the lights", 2, False),
        ("the lights", 1, False),
    ],
)
def test_a_text_that_stands_twice_is_a_loop_only_where_it_was_heard_once(heard, times, looped):
    tokenizer = load_checkpoint(SHIPPED).tokenizer
    once = tokenizer.encode("Turn off the lights.")
    text = of_clip(tokenizer, heard, reconsider=False)
    for token in [*once * (5 if looped else times), tokenizer.end]:
        if not text.write(token, -0.1, None):
            break
    assert text.looped == looped
    assert len(text.tokens) // len(once) == times


def misleading(before: Sequence[int]) -> tuple[int, float, int, float]:
    """Token 5 looks better than 6, but what follows 6 is much more probable."""
    story = [1, 2, 5, 3, 4, 7, 8, 9, 10, 11, 12, 13, 14]
    place = len(before)
    if place == 2:
        return 5, 0.5, 6, 0.4
    if place == len(story):
        return END, 0.99, 99, 0.001
    if place == 3 and before[2] == 5:
        return 3, 0.3, 98, 0.01
    return story[place], 0.99, 99, 0.001


def test_a_rival_wins_if_its_text_is_more_probable():
    text, begun = written(misleading)
    assert text.tokens == [1, 2, 6, 3, 4, 7, 8, 9, 10, 11, 12, 13, 14]
    assert len(text.logprobs) == len(text.tokens) + 1
    assert math.exp(text.logprobs[2]) == pytest.approx(0.4)
    assert math.exp(text.logprobs[3]) == pytest.approx(0.99)
    assert begun == [[], [1, 2, 6]]


def test_the_rest_is_taken_over_once_the_text_is_the_same_again():
    asked = []

    def says(before):
        asked.append(list(before))
        return misleading(before)

    written(says)
    after = [before for before in asked if before[2:3] == [6]]
    assert len(after) == REJOINED_TOKENS  # and not to the end


def test_doubts_are_tried_from_the_last_to_the_first_and_the_closest_only():
    doubts = 2 * MOST_RIVALS

    def says(before):
        if len(before) == 3 * doubts:
            return END, 0.01, 99, 0.001  # worse than any doubt, so none is lost at once
        if len(before) % 3 == 0 and len(before) // 3 == before.count(5):
            # The later the closer; what follows a rival is so unlikely that it never wins.
            return 5, 0.5, 6, 0.1 + 0.01 * len(before) / 3
        return 10 + len(before), 0.99 if 6 not in before else 0.001, 99, 0.001

    text, begun = written(says)
    assert 6 not in text.tokens
    places = [len(tokens) - 1 for tokens in begun[1:]]
    assert places == [3 * k for k in range(doubts - 1, doubts - 1 - MOST_RIVALS, -1)]


def test_a_rival_that_falls_behind_is_given_up():
    asked = []

    def says(before):
        asked.append(list(before))
        place = len(before)
        if place == 40:
            return END, 0.01, 99, 0.001  # so that no rival is less probable than the whole text yet
        if place == 2:
            return 5, 0.5, 6, 0.2
        return 10 + place, 0.99 if before[2:3] != [6] or place > 4 else 0.3, 99, 0.001

    text, _ = written(says)
    assert text.tokens[2] == 5
    after = [before for before in asked if before[2:3] == [6]]
    assert len(after) == GIVE_UP_TOKENS


@pytest.mark.parametrize("limit", [100, 10])
def test_a_rival_that_loops_or_is_too_long_is_not_taken(limit):
    def says(before):
        if 6 in before:
            return 7, 0.9999, 99, 0.00001
        if len(before) == 2:
            return 3, 0.5, 6, 0.4
        return [1, 2, 3, END][len(before)], 0.5, 99, 0.001

    text, begun = written(says, limit)
    assert begun == [[], [1, 2, 6]]
    assert text.tokens == [1, 2, 3]
    assert not text.looped


def test_the_end_can_be_a_rival():
    def says(before):
        if len(before) == 2:
            return 3, 0.5, END, 0.4
        if len(before) == 3:
            return END, 0.5, 99, 0.001
        return 1 + len(before), 0.99, 99, 0.001

    text, _ = written(says)
    assert text.tokens == [1, 2]
    assert math.exp(text.logprobs[-1]) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("token", "following", "rest"),
    [
        (9, [], [4, 5]),  # instead of 3
        (9, [3], [4, 5]),  # before 3
        (4, [], [5]),  # without 3
        (9, [8, 4], [5]),  # two for one
        (9, [8, 7], []),
    ],
)
def test_a_text_is_found_again_after_other_tokens(token, following, rest):
    draft = Rest([1, 2, 3, 4, 5], 2, token, WORDS)
    assert draft.agreed == 0
    for one in following:
        draft.follow(one)
    assert draft.next(10) == rest
    for count, one in enumerate(rest, draft.agreed + 1):
        draft.follow(one)
        assert draft.agreed == count


@pytest.mark.parametrize(
    ("text", "rival", "following", "rest"),
    [
        ("in market near", ",", [], " market near"),
        ("in Paul Street near", " Poly", ["st", "reet"], " Street near"),
        ("in market. But", "?", [], " But"),  # instead of another sign
    ],
)
def test_what_does_not_begin_a_word_stands_before_the_next_one(text, rival, following, rest):
    tokenizer = load_checkpoint(SHIPPED).tokenizer

    def token(piece: str) -> int:
        (one,) = tokenizer.pairs.encode(piece, add_special_tokens=False).ids
        return one

    place = {"?": 2}.get(rival, 1)
    draft = Rest(tokenizer.encode(text), place, token(rival), tokenizer.word_starts)
    for piece in following:
        draft.follow(token(piece))
    assert "".join(map(tokenizer.piece, draft.next(10))) == rest


def test_reconsidered_clips_leave_the_others_as_they_are(random_checkpoint):
    decoder, tokenizer = random_checkpoint.network.decoder, random_checkpoint.tokenizer
    generator = torch.Generator().manual_seed(0)
    for parameter in decoder.parameters():
        if parameter.ndim == 2:  # large enough that texts vary
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    decoder.embed_tokens.weight.data[tokenizer.end] *= 3  # and end
    encoded = torch.randn(4, 40, 64, generator=generator)
    frames = torch.tensor([40, 30, 20, 40])
    plain = greedy_search(decoder, encoded, frames, tokenizer)
    mixed = greedy_search(
        decoder, encoded, frames, tokenizer, reconsider=[True, False, True, False]
    )
    alone = greedy_search(decoder, encoded[[0]], frames[[0]], tokenizer, reconsider=[True])
    assert [mixed[i].tokens for i in (1, 3)] == [plain[i].tokens for i in (1, 3)]
    assert mixed[0].tokens == alone[0].tokens
    assert mixed[0].logprobs == pytest.approx(alone[0].logprobs, abs=1e-4)
