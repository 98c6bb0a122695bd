"""An n-gram of words, for the CTC beam search of mode `fast`; KenLM holds it and looks it up.

`training.language_model` makes one from text.
"""

import io
import lzma
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import kenlm

History: TypeAlias = kenlm.State


class LanguageModelError(ValueError):
    """The file is not an n-gram that can be used; the message names it."""


class LanguageModel:
    """An n-gram of lower-case words, and how much it counts beside the CTC head.

    Args:
        path: an ARPA file in UTF-8; compressed if its name ends with `.xz`.
        weight: of the logarithms of its probabilities.
        word_bonus: what each word earns (an n-gram alone likes few words); natural logarithm, as the
            CTC head's. The three were chosen on dev, see docs/experiments.md.
        unknown_cost: of a word that it does not have.

    Attributes:
        start, unknown: its history where a text begins, and after a word that it does not have.

    Raises:
        LanguageModelError: the file is not there, or not an ARPA file.
    """

    def __init__(
        self,
        path: Path,
        *,
        weight: float = 0.5,
        word_bonus: float = 1.5,
        unknown_cost: float = 12.0,
    ) -> None:
        self.weight = weight
        self.word_bonus = word_bonus
        self.unknown_cost = unknown_cost
        try:
            content = path.read_bytes()
            if path.suffix == ".xz":
                content = lzma.decompress(content)
            words = frozenset(_unigrams(content.decode()))
            config = kenlm.Config()
            config.show_progress = False
            config.arpa_complain = kenlm.ARPALoadComplain.NONE  # of the missing <unk>
            with tempfile.NamedTemporaryFile(suffix=".arpa") as plain:  # KenLM reads from a file
                plain.write(content)
                plain.flush()
                self._model = kenlm.Model(plain.name, config)
        except (OSError, ValueError, lzma.LZMAError) as error:
            raise LanguageModelError(f"{path} is not an n-gram in ARPA format: {error}") from error
        self._words = words
        self._beginnings = frozenset(word[:n] for word in words for n in range(1, len(word) + 1))
        self.start: History = kenlm.State()
        self._model.BeginSentenceWrite(self.start)
        self.unknown: History = kenlm.State()
        self._model.NullContextWrite(self.unknown)

    def knows(self, word: str) -> bool:
        """Whether the n-gram has this word."""
        return word in self._words

    def knows_beginning(self, letters: str) -> bool:
        """Whether any of its words begins so."""
        return letters in self._beginnings

    def score(self, history: History, word: str) -> tuple[History, float]:
        """The history after a word that it knows, and what the word earns."""
        after: History = kenlm.State()
        logprob = math.log(10) * self._model.BaseScore(history, word, after)
        return after, self.weight * logprob + self.word_bonus


def _unigrams(arpa: str) -> Iterator[str]:
    """The words of an ARPA file, without its signs for the edges of a sentence and the unknown."""
    _, heading, entries = arpa.partition("\\1-grams:\n")
    if not heading:
        raise ValueError("it has no line \\1-grams:")
    for line in io.StringIO(entries):
        fields = line.split()
        if line.startswith("\\"):
            return
        if len(fields) >= 2 and fields[1] not in ("<s>", "</s>", "<unk>"):
            yield fields[1]
