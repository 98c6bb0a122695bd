"""CTC prefix beam search (Hannun et al., "First-Pass Large Vocabulary Continuous Speech Recognition
using Bi-Directional Recurrent DNNs", 2014), for hot words and for an n-gram of words.

A prefix is a text so far; the paths through the frames that spell it are summed, apart for those that
end in a blank, since only after one can the last letter be said again.
"""

import math
from dataclasses import dataclass, field

from torch import Tensor

from model.hotwords import LetterBias
from model.language_model import History, LanguageModel
from model.tokenizer import Characters

# How many prefixes are kept at most, how far below the best, and how improbable a letter may be in its
# frame to be tried (natural logarithms); chosen on dev, see docs/experiments.md.
BEAMS = 16
BELOW_BEST = 8.0
UNLIKELY = -5.0
# A frame where the blank is so probable says nothing but that no letter goes on.
BLANK = -1e-3

_NEVER = -math.inf


def _add(a: float, b: float) -> float:
    """ln(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == _NEVER else a + math.log1p(math.exp(b - a))


@dataclass(eq=False, slots=True)
class _Prefix:
    """A text so far, as its last label and what stands before.

    Attributes:
        bias: state in the hot words.
        word: the last word, which may go on; only with an n-gram.
        history: the n-gram's, before that word.
        earned: by hot words and n-gram.
        blank, letter: probability of its paths that end in a blank, and in its last label.
        next_blank, next_letter: the same one frame later, while that is computed.
        longer: prefixes with one label more.
    """

    before: "_Prefix | None"
    label: int
    bias: int
    word: str
    history: History | None
    earned: float
    blank: float = _NEVER
    letter: float = _NEVER
    next_blank: float = _NEVER
    next_letter: float = _NEVER
    longer: "dict[int, _Prefix]" = field(default_factory=dict)

    @property
    def score(self) -> float:
        return _add(self.blank, self.letter) + self.earned


class CTCBeamSearch:
    """Finds the most probable text with the bonus of its hot words and the n-gram's judgement.

    Args:
        characters: the labels.
        bias: hot words.
        language_model: the n-gram, if there is one.
    """

    def __init__(
        self, characters: Characters, bias: LetterBias, language_model: LanguageModel | None
    ) -> None:
        self._characters = characters
        self._bias = bias
        self._language_model = language_model

    def __call__(self, logprobs: Tensor) -> str:
        """Lower-case text with single spaces, of log-probabilities (frames, labels)."""
        space = self._characters.space
        history = None if self._language_model is None else self._language_model.start
        beams = [_Prefix(None, space, self._bias.start, "", history, 0.0, blank=0.0)]
        silent = (logprobs[:, Characters.BLANK] > BLANK).tolist()
        likely: list[list[int]] = [[] for _ in silent]
        for frame, label in (logprobs > UNLIKELY).nonzero().tolist():
            if label != Characters.BLANK:
                likely[frame].append(label)
        for row, labels, only_blank in zip(logprobs.tolist(), likely, silent, strict=True):
            if only_blank:
                for prefix in beams:
                    prefix.blank, prefix.letter = _add(prefix.blank, prefix.letter), _NEVER
                continue
            reached = dict.fromkeys(beams)  # a set that keeps the order
            for prefix in beams:
                total = _add(prefix.blank, prefix.letter)
                prefix.next_blank = _add(prefix.next_blank, total + row[Characters.BLANK])
                for label in labels:
                    paths = total
                    if label == prefix.label:
                        # Several spaces are one, and none is the first.
                        again = total if label == space else prefix.letter
                        prefix.next_letter = _add(prefix.next_letter, again + row[label])
                        if label == space:
                            continue
                        paths = prefix.blank
                    longer = prefix.longer.get(label) or self._grow(prefix, label)
                    longer.next_letter = _add(longer.next_letter, paths + row[label])
                    reached[longer] = None
            for prefix in reached:
                prefix.blank, prefix.letter = prefix.next_blank, prefix.next_letter
                prefix.next_blank = prefix.next_letter = _NEVER
            scored = sorted(((p.score, i, p) for i, p in enumerate(reached)), reverse=True)
            least = scored[0][0] - BELOW_BEST
            beams = []
            for score, _, prefix in scored:
                if score >= least and len(beams) < BEAMS:
                    beams.append(prefix)
                else:  # should it be reached again, it starts afresh
                    prefix.blank = prefix.letter = _NEVER
        prefix = max(beams, key=lambda prefix: prefix.score + self._end(prefix))
        labels = []
        while prefix.before is not None:
            labels.append(prefix.label)
            prefix = prefix.before
        return self._characters.decode(reversed(labels)).strip()

    def _grow(self, prefix: _Prefix, label: int) -> _Prefix:
        bias, earned = self._bias.step(prefix.bias, label)
        word, history = "", prefix.history
        if self._language_model is not None:
            if label == self._characters.space:
                history, judged = self._judge(prefix)
                earned += judged
            else:
                word = prefix.word + self._characters.decode([label])
                # Charged at once, or such words would fill the beam until they end.
                if self._is_known(prefix.word) and not self._is_known(word):
                    earned -= self._language_model.unknown_cost
        longer = _Prefix(prefix, label, bias, word, history, prefix.earned + earned)
        prefix.longer[label] = longer
        return longer

    def _is_known(self, letters: str) -> bool:
        """Whether a word of the n-gram or a hot word begins so."""
        assert self._language_model is not None
        return (
            not letters
            or self._language_model.knows_beginning(letters)
            or letters in self._bias.beginnings
        )

    def _judge(self, prefix: _Prefix) -> tuple[History, float]:
        """The n-gram's history after the last word, and what its end earns."""
        model = self._language_model
        assert model is not None and prefix.history is not None
        if model.knows(prefix.word):
            return model.score(prefix.history, prefix.word)
        # If no known word begins so, its cost was paid where that was seen.
        ends_early = self._is_known(prefix.word) and prefix.word not in self._bias.words
        return model.unknown, model.word_bonus - (model.unknown_cost if ends_early else 0.0)

    def _end(self, prefix: _Prefix) -> float:
        """What the end of the text earns."""
        earned = self._bias.end(prefix.bias)
        if prefix.word:
            earned += self._judge(prefix)[1]
        return earned
