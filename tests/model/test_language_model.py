"""The n-gram: what is read, what is refused, and that it decides where the letters do not."""

from pathlib import Path

import pytest
import torch

from model.ctc_beam import CTCBeamSearch
from model.hotwords import Hotword, LetterBias
from model.language_model import LanguageModel, LanguageModelError
from model.tokenizer import Characters

ARPA = """\\data\\
ngram 1=7
ngram 2=3

\\1-grams:
-1.0\t</s>
-99\t<s>\t-0.3
-1.0\tthe\t-0.3
-1.0\tsale\t-0.3
-1.5\tsail\t-0.3
-1.0\tof\t-0.3
-2.0\tships\t-0.3

\\2-grams:
-0.1\tthe sail
-0.2\tsail of
-0.3\tof ships

\\end\\
"""


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    return path


def test_scores_are_those_of_the_file_with_backing_off(arpa: Path) -> None:
    model = LanguageModel(arpa, weight=0.5, word_bonus=0.0)
    history, first = model.score(model.start, "the")  # <s> the: by backing off
    assert first == pytest.approx(0.5 * -1.3 * 2.302585, rel=1e-5)
    _, seen = model.score(history, "sail")
    assert seen == pytest.approx(0.5 * -0.1 * 2.302585, rel=1e-5)
    _, afresh = model.score(model.unknown, "sail")
    assert afresh == pytest.approx(0.5 * -1.5 * 2.302585, rel=1e-5)
    assert model.knows("ships") and not model.knows("ship")
    assert model.knows_beginning("ship") and not model.knows_beginning("hips")
    assert not model.knows("<s>")


def test_a_file_that_is_not_xz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.arpa.xz"
    path.write_text(ARPA)
    with pytest.raises(LanguageModelError, match=r"bad\.arpa\.xz is not an n-gram"):
        LanguageModel(path)


@pytest.mark.parametrize("content", [b"", b"no n-gram", b"\xff\xfe", ARPA.encode()[:120], None])
def test_what_is_no_ngram_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.arpa"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LanguageModelError, match=r"bad\.arpa is not an n-gram"):
        LanguageModel(path)


def heard(*slots: str) -> torch.Tensor:
    """Log-probabilities of frames in which each of a slot's letters is equally probable."""
    characters = Characters()
    rows = []
    for slot in slots:
        row = torch.full((len(characters),), 1e-5)
        for letter in slot:
            row[characters.characters.index(letter) + 1] = 1.0
        blank = torch.full((len(characters),), 1e-6)
        blank[Characters.BLANK] = 1.0
        rows += [row / row.sum(), blank / blank.sum()]
    return torch.stack(rows).log()


def test_the_ngram_decides_between_what_sounds_alike(arpa: Path) -> None:
    characters = Characters()
    search = CTCBeamSearch(characters, LetterBias([], characters), LanguageModel(arpa))
    assert search(heard(*"the sa", "li", "le", *" of ships")) in ("the sail of ships",)
    assert search(heard(*"sa", "li", "le")) == "sale"  # alone it is the more frequent one


def test_a_hot_word_that_the_ngram_does_not_know_is_written_all_the_same(arpa: Path) -> None:
    characters = Characters()
    sound = heard(*"the ", "sz", "ao", *"il of ships")
    model = LanguageModel(arpa)
    assert "sail" in CTCBeamSearch(characters, LetterBias([], characters), model)(sound)
    hot = LetterBias([Hotword("zoil", 2.0)], characters)
    assert CTCBeamSearch(characters, hot, model)(sound) == "the zoil of ships"
