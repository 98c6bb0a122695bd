"""The draft finds its place beside what is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import load_checkpoint
from model.draft import Draft
from model.tokenizer import Tokenizer
from tests.random_checkpoint import SHIPPED


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_checkpoint(SHIPPED).tokenizer


def follow(draft: Draft, tokenizer: Tokenizer, written: str) -> str:
    """What the draft says comes after a written text."""
    for token in tokenizer.encode(written) if written else ():
        draft.follow(token)
    tokens = draft.next(100)
    assert tokens[-1] == tokenizer.end
    return "".join(map(tokenizer.piece, tokens[:-1]))


@pytest.mark.parametrize(
    ("heard", "written", "expected"),
    [
        ("mister quilter is the apostle", "", " Mister quilter is the apostle."),
        ("mister quilter is the apostle", "Mister", " quilter is the apostle."),
        ("mister cwilter is the apostle", "Mr. Quilter is", " the apostle."),
        ("mister quilter is the apostle", "Mister Quil", "ter is the apostle."),
        ("i think so but no", "I think so,", " but no."),
        ("so be it then we left", "So be it.", " Then we left."),
        ("the gospil of the day", "The gospel", " of the day."),
        ("he left of the day", "He has left", " of the day."),
        ("the the gospel of", "The gospel", " of."),
        ("so be it", "So be it", "."),
        ("so be it", "So be it.", ""),
        ("so be it", "So be it, he said", "."),
    ],
)
def test_goes_on_after_what_is_written(tokenizer, heard, written, expected):
    assert follow(Draft(heard, tokenizer), tokenizer, written) == expected


def test_gives_no_more_than_is_asked_for(tokenizer):
    draft = Draft("mister quilter is the apostle", tokenizer)
    whole = draft.next(100)
    assert [draft.next(n) for n in range(4)] == [whole[:n] for n in range(4)]


def distance(a: str, b: str) -> int:
    """Edit distance, by its definition (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


@given(st.text("ab ", max_size=20), st.text("ab ", max_size=25))
def test_its_place_is_the_nearest_beginning_by_edit_distance(tokenizer, heard, written):
    draft = Draft(heard, tokenizer)
    tokens = tokenizer.pairs.encode(written, add_special_tokens=False).ids
    for token in tokens:
        draft.follow(token)
    text = f" {heard}"
    distances = [distance(written, text[:n]) for n in range(len(text) + 1)]
    nearest = [n for n, d in enumerate(distances) if d == min(distances)]
    ends_of_words = [n for n in nearest if text[n : n + 1] in ("", " ")]
    assert draft.place == max(ends_of_words or nearest)
    again = draft.after(tokens)  # whatever it has followed itself
    assert (again.place, again.distance) == (draft.place, distances[-1])
    assert again.left == len(text) - again.place


def mended(tokenizer: Tokenizer, heard: str, written: str, after: list[str | None]) -> str:
    """What a draft says next, after a guess whose first token was wrong.

    Args:
        tokenizer: of the decoder.
        heard: the draft.
        written: instead of the first token of the guess.
        after: what would have been written in place of each of the next; None for the guess's own.
    """
    draft = Draft(heard, tokenizer)
    guess = draft.next(len(after) + 1)
    (first,) = tokenizer.pairs.encode(written, add_special_tokens=False).ids
    chosen = [
        own if piece is None else tokenizer.pairs.encode(piece, add_special_tokens=False).ids[0]
        for own, piece in zip(guess[1:], after, strict=True)
    ]
    draft.follow(first)
    draft = draft.mended([first], guess, 0, [first, *chosen])
    return "".join(tokenizer.piece(token) for token in draft.next(100)[:-1])


@pytest.mark.parametrize(
    ("heard", "after", "said"),
    [
        ("hear is the seat of it", [None, None, None], " is the seat of it."),
        ("hear is the seet of it", [None, None, " seat", None], " is the seat of it."),
        ("hear is thee set of it", [None, " the", " seat", None], " is the seat of it."),
        ("hear in french style now", [None, " French", None, None], " in French style now."),
        ("hear is market but it", [None, None, ",", None], " is market, but it."),
        ("hear is market now it", [None, None, ".", None], " is market. Now it."),
        ("hear is market but it", [None, None, " market", None], " is market but it."),  # again
        ("hear is all", [None, None, "?"], " is all?"),
        # A word that goes on after the guess: its rest would be wrong.
        ("hear is prob elem of race", [None, " problem"], " is problem elem of race."),
        ("hear is dangerusnes of race", [None, " dangerous"], " is dangerous of race."),
    ],
)
def test_a_wrong_guess_mends_what_follows(tokenizer, heard, after, said):
    assert mended(tokenizer, heard, " Here", after) == said


def test_what_is_mended_is_still_judged_by_what_was_heard(tokenizer):
    draft = Draft("so be it", tokenizer)
    guess = draft.next(4)
    tokens = tokenizer.encode("Say be")
    longer = tokenizer.encode("beneath")[0]
    draft.follow(tokens[0])
    other = draft.mended(tokens[:1], guess, 0, [tokens[0], longer, None, None])
    assert other.next(10) != draft.next(10)
    for one in (draft, other):
        one.follow(tokens[1])
    assert other.overrun == draft.overrun


@given(st.text(max_size=30), st.data())
def test_any_guess_and_any_answers_leave_a_draft_that_guesses(tokenizer, heard, data):
    draft = Draft(heard, tokenizer)
    tokens: list[int] = []
    any_token = st.integers(0, tokenizer.vocabulary - 1)
    for _ in range(3):
        guess = draft.next(6)
        right = data.draw(st.integers(0, len(guess) - 1))
        chosen = [data.draw(st.none() | any_token | st.just(token)) for token in guess]
        tokens += [*guess[:right], data.draw(any_token)]
        draft = draft.mended(tokens, guess, right, chosen)
        assert 0 <= draft.place <= draft.place + draft.left
        assert draft.next(100)[-1] == tokenizer.end
