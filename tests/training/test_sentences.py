"""Sentences from books: which are read in one way only, and that the choice pays and leaks nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from training import language_model
from training.sentences import (
    FREQUENT,
    KNOWN,
    Sentence,
    choose,
    main,
    runs,
    sentences_of,
    sought_words,
)


def sentence(written: str) -> Sentence:
    return Sentence(written, tuple(written.lower().strip(".").split()))


def test_sentences_are_cut_at_their_ends_and_never_across_paragraphs() -> None:
    book = """CHAPTER ONE

    The whale swam past the ship that night.  Nobody on
    deck had seen it go! Why _had_ the man “at the mast” said nothing?

    It was over before anyone knew"""
    assert [s.written for s in sentences_of(book)] == [
        "The whale swam past the ship that night.",
        "Nobody on deck had seen it go!",
        "Why had the man at the mast said nothing?",
    ]


@pytest.mark.parametrize(
    "doubtful",
    [
        "He went to see old Mr. Darcy had already gone home again.",
        "He lived in St. James for the rest of his life.",
        "The year was 1851 when they all went out to sea.",
        "The captain went BACK to the ship at once, alone.",
        "He called it 'the other side of the river' for years.",
        "He paid five pounds (or six) for the old boat.",
        "This is too short.",
        " ".join(["Much"] + ["too"] * 30 + ["long."]),
    ],
)
def test_a_sentence_that_can_be_read_in_several_ways_is_left_out(doubtful: str) -> None:
    good = "The whale swam past the ship that night."
    assert [s.written for s in sentences_of(f"{doubtful} {good}")] == [good]


def test_words_are_sought_that_the_books_repeat_and_training_hardly_has() -> None:
    book = [sentence("harpoon ship ship")] * FREQUENT + [sentence("misprnit harpoon")]
    assert sought_words(book, {"ship": KNOWN}).keys() == {"harpoon"}
    assert sought_words(book, {"ship": KNOWN - 1}).keys() == {"harpoon", "ship"}


def test_new_words_come_before_words_that_were_chosen_already() -> None:
    both, again, other, plain = map(
        sentence, ["Whale harpoon seen.", "Whale harpoon heard.", "Ocean was seen.", "He was seen."]
    )
    sought = {"whale": 1.0, "harpoon": 1.0, "ocean": 1.0}
    assert choose([plain, again, other, both], sought, 3600) == [again, other, both]


def test_no_more_is_chosen_than_was_asked_for() -> None:
    book = [sentence(f"The word {name}ing was said aloud.") for name in "abcdefgh"]
    sought = {f"{name}ing": 1.0 for name in "abcdefgh"}
    assert len(choose(book, sought, 2.5 * book[0].seconds)) == 3
    assert choose(book, sought, 0) == []


@given(st.lists(st.sampled_from(["a b c", "c d e f", "f", "a f g", "h"]).map(sentence)), st.data())
def test_every_sought_word_is_chosen_if_there_is_time(book: list[Sentence], data) -> None:  # type: ignore[no-untyped-def]
    sought = dict.fromkeys(data.draw(st.sets(st.sampled_from("abcdefgh"))), 1.0)
    chosen = {word for s in choose(book, sought, float("inf")) for word in s.words}
    assert chosen & sought.keys() == {word for s in book for word in s.words} & sought.keys()


def test_runs_are_all_six_words_in_a_row() -> None:
    assert runs(list("abcdefg")) == {tuple("abcdef"), tuple("bcdefg")}
    assert runs(list("abcde")) == set()


def manifest(path: Path, *texts: str) -> Path:
    lines = []
    for number, text in enumerate(texts):
        audio = path.with_name(f"{path.stem}-{number}.wav")
        soundfile.write(audio, np.zeros(16_000), 16_000)
        lines.append(json.dumps({"audio_filepath": audio.name, "duration": 1.0, "text": text}))
    path.write_text("\n".join(lines))
    return path


def test_command_chooses_what_training_lacks_and_nothing_that_is_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endings = ["in the morning", "at the noon", "by late evening", "at some midnight"]
    book = [f"The harpoon {verb} {end}." for verb in ("was lost", "fell away") for end in endings]
    (tmp_path / "book.txt").write_text(" ".join([*book, "They all went home in the morning."]))
    arguments = [
        *("--book", tmp_path / "book.txt", "--hours", 1, "--output", tmp_path / "words.txt"),
        *("--train", manifest(tmp_path / "train.jsonl", *["the was at some all in fell away"] * 2)),
        "--held-out",
        manifest(tmp_path / "dev.jsonl", "they said the HARPOON was lost in the morning to him"),
        manifest(tmp_path / "test.jsonl", "unlike"),
    ]
    assert main(list(map(str, arguments))) == 0
    chosen = (tmp_path / "words.txt").read_text().splitlines()
    assert sorted(chosen) == sorted(set(book) - {book[0]})
    assert "1 are too like held-out texts" in capsys.readouterr().out
    # Texts are held out where their recordings are not.
    for path in tmp_path.glob("*.wav"):
        path.unlink()
    assert main(list(map(str, arguments))) == 0
    assert (tmp_path / "words.txt").read_text().splitlines() == chosen


@pytest.mark.parametrize("tool", [main, language_model.main])
def test_a_held_out_line_that_cannot_be_read_ends_it(
    tool: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "book.txt").write_text("The quick brown fox jumps over the lazy dog.")
    held_out = tmp_path / "test.jsonl"
    held_out.write_text('{"audio_filepath": "1.wav", "duration": -1, "text": "a secret"}\n' * 2)
    output = tmp_path / "output.txt"
    own = ["--book", "--train", str(manifest(tmp_path / "train.jsonl", "a")), "--hours", "1"]
    words = ["--text"] if tool is language_model.main else [*own[1:], own[0]]
    command = [*words, str(tmp_path / "book.txt"), "--held-out", str(held_out)]
    assert tool([*command, "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert "test.jsonl:1: duration is -1" in error and "this line and 1 more" in error
    assert not output.exists()


def test_a_book_that_is_not_utf8_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "book.txt").write_bytes(b"caf\xe9")
    lists = str(manifest(tmp_path / "list.jsonl", "text"))
    command = ["--book", str(tmp_path / "book.txt"), "--train", lists, "--held-out", lists]
    assert main([*command, "--hours", "1", "--output", str(tmp_path / "words.txt")]) == 1
    assert "book.txt is not UTF-8 at byte 4" in capsys.readouterr().err
