"""Hot words: what they earn, on paper and in real speech."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import load_checkpoint
from model.hotwords import (
    EDGE,
    LETTER_BONUS,
    TOKEN_BONUS,
    Hotword,
    LetterBias,
    PhraseTree,
    TokenBias,
)
from model.tokenizer import Characters, Tokenizer
from tests.random_checkpoint import SHIPPED


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_checkpoint(SHIPPED).tokenizer


def walk(tree: PhraseTree, symbols):
    node, total = PhraseTree.ROOT, 0.0
    for symbol in symbols:
        node, earned = tree.step(node, symbol)
        total += earned
    return node, total


def letters_earned(bias: LetterBias, text: str) -> float:
    state, total = bias.start, 0.0
    for label in Characters().encode(text):
        state, earned = bias.step(state, label)
        total += earned
    return total + bias.end(state)


def tokens_earned(bias: TokenBias, tokenizer: Tokenizer, text: str) -> float:
    state, total = bias.start, 0.0
    for token in [*tokenizer.encode(text), tokenizer.end]:
        total += bias.bonuses(state)[token].item()
        state = bias.step(state, token)
    return total


@pytest.mark.parametrize(
    ("hotwords", "text", "earned"),
    [
        ({"ann": 1, "annapolis": 5}, "ann", 3),
        ({"ann": 1, "annapolis": 5}, "annapolis", 45),
        ({"ann": 5, "annapolis": 1}, "annapolis", 9),  # it does not hold the word "ann"
        ({"ann": 5, "ann arbor": 1}, "ann arbor", 15),
        ({"kafka": 1, "kubernetes": 5}, "kafka", 5),
        ({"anna": 0.1, "anders": 10}, "anna", 0.4),
        ({"anna": 0.1, "anders": 10}, "and", 0),
        ({"anna": 0.1, "anders": 10}, "anna anders", 60.4),
    ],
)
def test_a_word_earns_its_own_weight_whatever_begins_like_it(hotwords, text, earned) -> None:
    bias = LetterBias([Hotword(*word) for word in hotwords.items()], Characters())
    assert letters_earned(bias, text) == pytest.approx(earned * LETTER_BONUS)


PHRASES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=5)


@given(PHRASES, st.lists(st.integers(0, 2), max_size=12))
def test_earned_is_what_was_completed_and_what_is_under_way(phrases, symbols) -> None:
    tree = PhraseTree([[(symbol, 1.0) for symbol in phrase] for phrase in phrases])
    node, total = walk(tree, symbols)
    left = total - tree.at_stake(node)
    ends = [
        i
        for i in range(len(symbols))
        for p in phrases
        if symbols[max(0, i + 1 - len(p)) : i + 1] == p
    ]
    assert (left > 0) == bool(ends)
    assert left <= total  # nothing is lost but what is under way
    assert left <= sum(max(len(p) for p in phrases) for _ in set(ends))


def test_a_broken_phrase_gives_all_back_and_a_longer_one_keeps_the_shorter_ones() -> None:
    tree = PhraseTree([[(1, 1.0), (2, 1.0)], [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0)]])
    assert walk(tree, [1])[1] == 1
    assert walk(tree, [1, 9])[1] == 0
    assert walk(tree, [1, 2, 9])[1] == 2
    assert walk(tree, [1, 2, 3])[1] == 3
    assert walk(tree, [1, 2, 3, 9])[1] == 2
    assert walk(tree, [1, 2, 3, 4, 9])[1] == 4
    assert walk(tree, [1, 1, 2])[1] == 2, "a new beginning in the middle of a phrase is seen"


@given(PHRASES, st.lists(st.integers(0, 3), max_size=8), st.integers(0, 3))
def test_symbols_are_those_that_earn_anything_else_than_leaving(phrases, before, symbol) -> None:
    tree = PhraseTree([[(s, 1.0) for s in phrase] for phrase in phrases])
    node, _ = walk(tree, before)
    if symbol not in tree.symbols(node):
        assert tree.step(node, symbol) == (PhraseTree.ROOT, -tree.at_stake(node))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("art", 1),
        ("the art of war", 1),
        ("art art", 2),
        ("start", 0),
        ("artist", 0),
        ("a rt", 0),
        ("the starting", 0),
    ],
)
def test_only_whole_words_earn(tokenizer: Tokenizer, text: str, words: int) -> None:
    hotwords = [Hotword("Art", 2.0)]
    letters = LetterBias(hotwords, Characters())
    assert letters_earned(letters, text) == pytest.approx(words * 3 * 2 * LETTER_BONUS)
    tokens = TokenBias(hotwords, tokenizer)
    assert tokens_earned(tokens, tokenizer, text) == pytest.approx(words * 2 * TOKEN_BONUS)


@pytest.mark.parametrize(
    "text", ["kubernetes", "Kubernetes", "KUBERNETES", "on Kubernetes, twice", "Kubernetes's pods."]
)
def test_a_word_earns_in_any_casing_and_before_any_sign(tokenizer: Tokenizer, text: str) -> None:
    tokens = TokenBias([Hotword("kubernetes")], tokenizer)
    written = len(
        tokenizer.encode(
            next(
                w
                for w in text.replace(",", "").replace("'s", "").split()
                if w.lower() == "kubernetes"
            )
        )
    )
    assert tokens_earned(tokens, tokenizer, text) == pytest.approx(written * TOKEN_BONUS)


@pytest.mark.parametrize("word", ["C#", "C++", "TCP/IP", "CI/CD"])
def test_what_is_never_written_makes_nothing_else_likelier(tokenizer: Tokenizer, word: str) -> None:
    assert LetterBias([Hotword(word)], Characters()).words == set()
    tokens = TokenBias([Hotword(word)], tokenizer)
    assert not tokens.bonuses(tokens.start).any()
    assert TokenBias([Hotword("AT&T")], tokenizer).bonuses(tokens.start).any()


def test_a_phrase_with_signs_inside_earns(tokenizer: Tokenizer) -> None:
    tokens = TokenBias([Hotword("O'Brien's pub")], tokenizer)
    n = len(tokenizer.encode("O'Brien's pub"))
    assert tokens_earned(tokens, tokenizer, "In O'Brien's pub.") == pytest.approx(n * TOKEN_BONUS)
    assert tokens_earned(tokens, tokenizer, "In O'Brien's house.") == pytest.approx(0)


@pytest.mark.parametrize("text", ["In New York Newton", "new yorkers", "Newt", "a"])
def test_bonuses_of_all_tokens_at_once_are_those_of_single_steps(
    tokenizer: Tokenizer, text: str
) -> None:
    tokens = TokenBias([Hotword("New York"), Hotword("Newton", 3.0)], tokenizer)

    def single(state: int, token: int) -> float:
        before = 0.0
        if tokenizer.opens_word[token]:
            state, before = tokens._tree.step(state, EDGE)
        return before + tokens._tree.step(state, token)[1]

    state = tokens.start
    for token in tokenizer.encode(text):
        expected = [single(state, each) for each in range(tokenizer.vocabulary)]
        assert tokens.bonuses(state).tolist() == pytest.approx(expected)
        state = tokens.step(state, token)


def test_what_letters_cannot_spell_is_no_hot_word_of_the_ctc_head() -> None:
    bias = LetterBias([Hotword("B2B")], Characters())
    assert letters_earned(bias, "b b") == 0


def test_half_a_character_opens_no_word(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("naïve café 𝄞")
    assert torch.equal(tokenizer.opens_word[torch.tensor(tokens[:1])], torch.tensor([True]))
    assert not tokenizer.opens_word[tokenizer.encode("antidisestablishment")[1]]


def test_a_hot_word_never_earns_for_the_end_of_the_text(tokenizer: Tokenizer) -> None:
    bias = TokenBias([Hotword("<|endoftext|> lights")], tokenizer)
    assert bias.bonuses(bias.start)[tokenizer.end] == 0
