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
