"""Times and confidences of words, by aligning a text with the CTC head's output."""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torchaudio.functional
from torch import Tensor

from model.features import ENCODER_FRAMES_PER_SECOND
from model.tokenizer import Characters
from model.transcript import Word

# A character is recognized a little after its sound has begun. Rounded from the median error of word
# starts without this, on words joined with known pauses (tests/model/test_word_times.py).
START_LAG_SECONDS = 0.05


class AlignmentError(ValueError):
    """The text has more characters than the audio has frames for."""


@dataclass(frozen=True)
class _Spelled:
    """A word and where its labels stand in the sequence that is aligned."""

    word: str
    first: int
    last: int


def _labels(text: str, characters: Characters) -> tuple[list[int], list[_Spelled]]:
    """The sequence to align, and where each word stands in it."""
    wildcard = len(characters)
    labels: list[int] = []
    words: list[_Spelled] = []
    leading = ""
    for word in text.split():
        spelled = characters.spell(word) or ([wildcard] if any(c.isalnum() for c in word) else [])
        if not spelled:  # a dash on its own has no sound; it goes with the word before it
            if words:
                words[-1] = replace(words[-1], word=f"{words[-1].word} {word}")
            else:
                leading += word + " "
            continue
        if labels:
            labels.append(characters.space)
        first = len(labels)
        labels += spelled
        words.append(_Spelled(leading + word, first, len(labels) - 1))
        leading = ""
    return labels, words


def fits(text: str, frames: int, characters: Characters) -> bool:
    """Whether a text can be aligned with so many frames: CTC needs one for each character, and one
    more between two that are the same.
    """
    labels, _ = _labels(text, characters)
    return _frames_needed(labels) <= frames


def _frames_needed(labels: list[int]) -> int:
    return len(labels) + sum(a == b for a, b in pairwise(labels))


def align_words(logprobs: Tensor, text: str, characters: Characters) -> list[Word]:
    """Find when each word of a text was said (CTC forced alignment, Graves et al., 2006).

    A word that has no label at all ("20", "1984") is aligned as one wildcard that matches whatever
    is not blank.

    Args:
        logprobs: float32 (frames, labels) of one clip, valid frames only.
        text: what was said; words are what white space separates.
        characters: the labels.

    Returns:
        Words with start and end in seconds from the clip's start, and confidence: the geometric mean
        of its characters' probabilities.

    Raises:
        AlignmentError: the text cannot fit into so few frames.
    """
    labels, words = _labels(text, characters)
    if not words:
        return []
    path, path_scores = _best_path(logprobs, labels)
    spans = torchaudio.functional.merge_tokens(path, path_scores.exp())
    result: list[Word] = []
    for spelled_word in words:
        own = spans[spelled_word.first : spelled_word.last + 1]
        confidence = float(torch.tensor([s.score for s in own]).clamp(min=1e-8).log().mean().exp())
        heard = own[0].start / ENCODER_FRAMES_PER_SECOND
        result.append(
            Word(
                word=spelled_word.word,
                start=max(heard - START_LAG_SECONDS, result[-1].end if result else 0.0),
                end=own[-1].end / ENCODER_FRAMES_PER_SECOND,
                confidence=min(confidence, 1.0),
            )
        )
    return result


def text_logprob(logprobs: Tensor, text: str, characters: Characters) -> float:
    """Natural logarithm of the probability that the CTC head gives a text, by its best alignment.

    Arguments and errors as for `align_words`; a text without a letter or digit is all blanks.
    """
    labels, words = _labels(text, characters)
    if not words:
        return float(logprobs[:, Characters.BLANK].sum())
    return float(_best_path(logprobs, labels)[1].sum())


def _best_path(logprobs: Tensor, labels: list[int]) -> tuple[Tensor, Tensor]:
    """The label of each frame and its log-probability, each (frames,)."""
    if _frames_needed(labels) > len(logprobs):
        raise AlignmentError(
            f"a text of {len(labels)} characters does not fit into {len(logprobs)} frames"
        )
    anything = torch.log1p(-logprobs[:, Characters.BLANK].exp().clamp(max=1 - 1e-6))
    scores = torch.cat([logprobs, anything[:, None]], dim=1).cpu()
    path, path_scores = torchaudio.functional.forced_align(
        scores[None], torch.tensor([labels], dtype=torch.int32), blank=Characters.BLANK
    )
    return path[0], path_scores[0]
