"""N-grams from text: probabilities that sum to one, nothing of held-out texts, clear errors."""

import json
import lzma
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.language_model import LanguageModel
from training.language_model import arpa, count, main, sentences_of

TEXT = """CHAPTER ONE

The whale swam past the ship. The ship's crew saw
the whale -- twice! The whale saw the ship.

THE END"""


def estimated(
    text: str, order: int, folder: Path, least: Sequence[int] = (1, 1, 2, 2)
) -> LanguageModel:
    path = folder / "lm.arpa"
    path.write_text("".join(f"{line}\n" for line in arpa(count(sentences_of(text), order), least)))
    return LanguageModel(path, weight=1.0, word_bonus=0.0)


def test_sentences_are_cut_at_their_ends_and_at_empty_lines() -> None:
    assert [" ".join(words) for words in sentences_of(TEXT)] == [
        "chapter one",
        "the whale swam past the ship",
        "the ship's crew saw the whale twice",
        "the whale saw the ship",
        "the end",
    ]


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("least", [(1, 1, 2, 2), (1, 2, 2, 2), (1, 2, 1, 1)])
def test_after_any_history_the_probabilities_sum_to_one(
    order: int, least: tuple[int, ...], tmp_path: Path
) -> None:
    model = estimated(TEXT, order, tmp_path, least)
    words = {word for sentence in sentences_of(TEXT) for word in sentence}
    history = model.start
    for step in ["the", "whale", "saw", "the", "crew", "end", "one"]:
        assert model.knows(step)
        total = sum(math.exp(model.score(history, w)[1]) for w in [*words, "</s>"])
        assert total == pytest.approx(1, abs=3e-3)  # three decimals
        history, _ = model.score(history, step)


def test_what_stands_often_stays_however_few_words_it_follows() -> None:
    """Kneser and Ney count "saudi arabia" once, since nothing but "in" stands before it."""
    sentences = [["in", "saudi", "arabia", "we", "met"]] * 50
    kept = "\n".join(arpa(count(sentences, 3), (1, 2, 3)))
    assert "\tin saudi arabia" in kept
    assert "\tsaudi arabia we" in kept
    rare = "\n".join(arpa(count([*sentences, ["in", "saudi", "lands"]], 3), (1, 2, 3)))
    assert "saudi lands" not in rare


def test_what_stands_together_is_likelier_together(tmp_path: Path) -> None:
    model = estimated(TEXT, 3, tmp_path)
    the, _ = model.score(model.start, "the")
    assert model.score(the, "whale")[1] > model.score(the, "saw")[1]


def test_sentences_like_held_out_ones_are_left_out(tmp_path: Path, capsys) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000, dtype=np.float32), 16_000)
    entry = {
        "audio_filepath": "a.wav",
        "duration": 1.0,
        "text": "crew saw the whale twice the ship's",
    }
    entry["text"] = "oh the ship's crew saw the whale"
    (tmp_path / "dev.jsonl").write_text(json.dumps(entry) + "\n")
    (tmp_path / "book.txt").write_text(TEXT)
    output = tmp_path / "lm.arpa"
    options = ["--text", str(tmp_path / "book.txt"), "--held-out", str(tmp_path / "dev.jsonl")]
    assert main([*options, "--output", str(output)]) == 0
    assert "1 sentences are too like" in capsys.readouterr().out
    assert "crew" not in output.read_text()
    assert LanguageModel(output).knows("swam")
    assert main([*options, "--output", f"{output}.xz"]) == 0
    assert lzma.decompress((tmp_path / "lm.arpa.xz").read_bytes()) == output.read_bytes()
    assert LanguageModel(tmp_path / "lm.arpa.xz").knows("swam")
    with pytest.raises(SystemExit):
        main([*options, "--output", str(output), "--least", "1", "2"])
    assert "it must be 3 numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff", "not UTF-8"), (b"1984", "no sentence"), (None, "No such file")],
)
def test_a_text_that_cannot_be_used_is_named(
    tmp_path: Path, capsys, content: bytes | None, message: str
) -> None:
    text = tmp_path / "book.txt"
    if content is not None:
        text.write_bytes(content)
    assert main(["--text", str(text), "--output", str(tmp_path / "lm.arpa")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "lm.arpa").exists()
