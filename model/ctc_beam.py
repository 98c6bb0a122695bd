"""CTC prefix beam search (Hannun et al., "First-Pass Large Vocabulary Continuous Speech Recognition
using Bi-Directional Recurrent DNNs", 2014), for hot words.

A prefix is a text so far; the paths through the frames that spell it are summed, apart for those that
end in a blank, since only after one can the last letter be said again.
"""

import math
from dataclasses import dataclass, field

from torch import Tensor

from model.hotwords import LetterBias
from model.tokenizer import Characters

# Prefixes that are kept, and how improbable a letter may be in its frame to be tried (natural
# logarithm); chosen on dev, see docs/experiments.md.
BEAMS = 16
UNLIKELY = -7.0
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
        state: in the hot words.
        earned: by hot words.
        blank, letter: probability of its paths that end in a blank, and in its last label.
        next_blank, next_letter: the same one frame later, while that is computed.
    """

    before: "_Prefix | None"
    label: int
    state: int
    earned: float
    blank: float = _NEVER
    letter: float = _NEVER
    next_blank: float = _NEVER
    next_letter: float = _NEVER
    longer: dict[int, "_Prefix"] = field(default_factory=dict)


def beam_ctc(logprobs: Tensor, characters: Characters, bias: LetterBias) -> str:
    """The most probable text, with the bonus of its hot words.

    Args:
        logprobs: (frames, labels) of the CTC head.
        characters: the labels.
        bias: hot words.

    Returns:
        Lower-case text with single spaces.
    """
    root = _Prefix(None, characters.space, bias.start, 0.0, blank=0.0)
    beams = [root]
    certain = (logprobs[:, Characters.BLANK] > BLANK).tolist()
    tried = (logprobs > UNLIKELY).nonzero().tolist()
    labels: list[list[int]] = [[] for _ in certain]
    for frame, label in tried:
        if label != Characters.BLANK:
            labels[frame].append(label)
    for silent, row, likely in zip(certain, logprobs.tolist(), labels, strict=True):
        if silent:
            for prefix in beams:
                prefix.blank, prefix.letter = _add(prefix.blank, prefix.letter), _NEVER
            continue
        reached = dict.fromkeys(beams)
        for prefix in beams:
            total = _add(prefix.blank, prefix.letter)
            prefix.next_blank = _add(prefix.next_blank, total + row[Characters.BLANK])
            for label in likely:
                again = label == prefix.label
                if again and label == characters.space:  # several are one, and none is the first
                    prefix.next_letter = _add(prefix.next_letter, total + row[label])
                    continue
                if again:
                    prefix.next_letter = _add(prefix.next_letter, prefix.letter + row[label])
                longer = prefix.longer.get(label)
                if longer is None:
                    state, earned = bias.step(prefix.state, label)
                    longer = _Prefix(prefix, label, state, prefix.earned + earned)
                    prefix.longer[label] = longer
                reached[longer] = None
                paths = (prefix.blank if again else total) + row[label]
                longer.next_letter = _add(longer.next_letter, paths)
        for prefix in reached:
            prefix.blank, prefix.letter = prefix.next_blank, prefix.next_letter
            prefix.next_blank = prefix.next_letter = _NEVER
        beams = sorted(reached, key=_score, reverse=True)
        for prefix in beams[BEAMS:]:
            prefix.blank = prefix.letter = _NEVER
        beams = beams[:BEAMS]
    best = max(beams, key=lambda prefix: _score(prefix) + bias.end(prefix.state))
    spelled = []
    while best.before is not None:
        spelled.append(best.label)
        best = best.before
    return characters.decode(reversed(spelled)).strip()


def _score(prefix: _Prefix) -> float:
    return _add(prefix.blank, prefix.letter) + prefix.earned
