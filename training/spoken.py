"""The words that are said when a line is read aloud, in the characters of the CTC head."""

import unicodedata
from pathlib import Path

from model.tokenizer import Characters

_CHARACTERS = Characters()
_SIGNS = frozenset(".,;:!?…'\"“”()-—")
_SIMPLER = str.maketrans({"’": "'", "‘": "'", "‐": "-", "‑": "-", "–": "—"})
_BETWEEN_WORDS = str.maketrans("-—…", "   ")


class UnspeakableError(ValueError):
    """A line that cannot be turned into speech of which the words are known."""


def simple_signs(line: str) -> str:
    """A line with straight apostrophes, one kind of hyphen, one kind of dash, and single spaces."""
    line = unicodedata.normalize("NFC", line).translate(_SIMPLER).replace("--", "—")
    return " ".join(line.split())


def words_of(text: str) -> list[str]:
    """The words of any text in lower case, accents folded; signs and digits are left out."""
    text = simple_signs(text).translate(_BETWEEN_WORDS)
    return _CHARACTERS.decode(_CHARACTERS.encode(text)).split()


def spoken_text(line: str) -> str:
    """Spell what a reader of `line` says: lower-case words with single spaces.

    Nothing is guessed: "1984", "$5" and "№" can be read in several ways, so the line must hold words.

    Raises:
        UnspeakableError: the line holds other than English letters and punctuation, or no word.
    """
    strange = {
        c: None  # a set that keeps the order
        for c in simple_signs(line)
        if not (c in _SIGNS or c.isspace() or (c.isalpha() and _CHARACTERS.covers(c)))
    }
    if strange:
        raise UnspeakableError(
            f"holds {' '.join(strange)}, which English letters cannot spell;"
            " write numbers and signs as the words that are said"
        )
    if not (words := words_of(line)):
        raise UnspeakableError("holds no word")
    return " ".join(words)


def read_plain_text(path: Path) -> str:
    """The content of a UTF-8 file, with or without a byte order mark.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start + 1}") from error
