"""CTC prefix beam search (Hannun et al., "First-Pass Large Vocabulary Continuous Speech Recognition
using Bi-Directional Recurrent DNNs", 2014), for hot words and for an n-gram of words.

A prefix is a text so far; the paths through the frames that spell it are summed, apart for those that
end in a blank, since only after one can the last letter be said again.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from model.hotwords import LetterBias
from model.language_model import History, LanguageModel
from model.tokenizer import Characters

# How many prefixes are kept at most, how far below the best, and how improbable a letter may be in its
# frame to be tried (natural logarithms); chosen on dev, see docs/experiments.md.
BEAMS = 16
# With hot words so many more: the best, once what they would lose by leaving a hot word is taken off.
# Else the beginnings of a hundred words with a high weight take all places from what was said.
SECURE_BEAMS = 8
BELOW_BEST = 8.0
UNLIKELY = -5.0
# A frame where the blank is so probable says nothing but that no letter goes on.
BLANK = -0.03

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
        known: whether a word of the n-gram or a hot word begins so.
        history: the n-gram's, before that word.
        earned: by hot words and n-gram.
        total: probability of all its paths, while the next frame is computed.
        blank, letter: probability of its paths that end in a blank, and in its last label.
        next_blank, next_letter: the same one frame later, while that is computed.
        longer: prefixes with one label more.
    """

    before: "_Prefix | None"
    label: int
    bias: int
    word: str
    known: bool
    history: History | None
    earned: float
    total: float = _NEVER
    blank: float = _NEVER
    letter: float = _NEVER
    next_blank: float = _NEVER
    next_letter: float = _NEVER
    longer: "dict[int, _Prefix]" = field(default_factory=dict)

    @property
    def future(self) -> tuple[int, int, str, History | None]:
        """What its continuations are judged by."""
        return self.label, self.bias, self.word, self.history

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
        # By one letter.
        self._most_earned = bias.highest
        if language_model is not None:
            self._most_earned += language_model.word_bonus

    def __call__(self, logprobs: Tensor) -> str:
        """Lower-case text with single spaces, of log-probabilities (frames, labels)."""
        space = self._characters.space
        history = None if self._language_model is None else self._language_model.start
        beams = [_Prefix(None, space, self._bias.start, "", True, history, 0.0, blank=0.0)]
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
            highest = _NEVER
            for prefix in beams:
                total = prefix.total = _add(prefix.blank, prefix.letter)
                prefix.next_blank = total + row[Characters.BLANK]
                if prefix.label in labels:
                    # Several spaces are one, and none is the first.
                    again = total if prefix.label == space else prefix.letter
                    prefix.next_letter = again + row[prefix.label]
                highest = max(highest, _add(prefix.next_blank, prefix.next_letter) + prefix.earned)
            least = highest - BELOW_BEST - self._most_earned
            reached = dict.fromkeys(beams)  # a set that keeps the order
            for prefix in beams:
                for label in labels:
                    paths = prefix.total
                    if label == prefix.label:
                        if label == space:
                            continue
                        paths = prefix.blank
                    paths += row[label]
                    if paths + prefix.earned < least:
                        continue
                    longer = prefix.longer.get(label) or self._grow(prefix, label)
                    longer.next_letter = _add(longer.next_letter, paths)
                    reached[longer] = None
            for prefix in reached:
                prefix.blank, prefix.letter = prefix.next_blank, prefix.next_letter
                prefix.next_blank = prefix.next_letter = _NEVER
            beams = self._best(reached)
        prefix = max(beams, key=lambda prefix: prefix.score + self._end(prefix))
        labels = []
        while prefix.before is not None:
            labels.append(prefix.label)
            prefix = prefix.before
        return self._characters.decode(reversed(labels)).strip()

    def _best(self, reached: Iterable[_Prefix]) -> list[_Prefix]:
        """The prefixes that are kept."""
        kept: dict[_Prefix, None] = {}
        scored = [(prefix.score, i, prefix) for i, prefix in enumerate(reached)]
        self._keep(scored, BEAMS, kept)
        if self._bias.highest:
            secure = [(score - self._bias.at_stake(p.bias), i, p) for score, i, p in scored]
            self._keep(secure, SECURE_BEAMS, kept)
        for _, _, prefix in scored:
            if prefix not in kept:  # should it be reached again, it starts afresh
                prefix.blank = prefix.letter = _NEVER
        return list(kept)

    def _keep(
        self, scored: list[tuple[float, int, _Prefix]], most: int, kept: dict[_Prefix, None]
    ) -> None:
        """Keep the best of these, or leave them kept."""
        scored = sorted(scored, reverse=True)
        least = scored[0][0] - BELOW_BEST
        futures: set[object] = set()
        for score, _, prefix in scored:
            if score < least or len(futures) == most:
                return
            # What n-gram and hot words make of the rest is the same for all with the same last words.
            future = prefix if self._language_model is None else prefix.future
            if future not in futures:
                futures.add(future)
                kept[prefix] = None

    def _grow(self, prefix: _Prefix, label: int) -> _Prefix:
        bias, earned = self._bias.step(prefix.bias, label)
        word, known, history = "", True, prefix.history
        if self._language_model is not None:
            if label == self._characters.space:
                history, judged = self._judge(prefix)
                earned += judged
            else:
                word = prefix.word + self._characters.characters[label - 1]
                known = prefix.known and self._is_known(word)
                # Charged at once, or such words would fill the beam until they end.
                if prefix.known and not known:
                    earned -= self._language_model.unknown_cost
        longer = _Prefix(prefix, label, bias, word, known, history, prefix.earned + earned)
        prefix.longer[label] = longer
        return longer

    def _is_known(self, letters: str) -> bool:
        """Whether a word of the n-gram or a hot word begins so."""
        assert self._language_model is not None
        return self._language_model.knows_beginning(letters) or letters in self._bias.beginnings

    def _judge(self, prefix: _Prefix) -> tuple[History, float]:
        """The n-gram's history after the last word, and what its end earns."""
        model = self._language_model
        assert model is not None and prefix.history is not None
        if model.knows(prefix.word):
            return model.score(prefix.history, prefix.word)
        # If no known word begins so, its cost was paid where that was seen.
        ends_early = prefix.known and prefix.word not in self._bias.words
        return model.unknown, model.word_bonus - (model.unknown_cost if ends_early else 0.0)

    def _end(self, prefix: _Prefix) -> float:
        """What the end of the text earns."""
        earned = self._bias.end(prefix.bias)
        if prefix.word:
            earned += self._judge(prefix)[1]
        return earned
