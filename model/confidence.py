"""How sure the recognizer is of a word, as a chance that can be believed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.transcript import Word

Floats = NDArray[np.float64]

# An answer gives confidences with four digits; a logarithm beyond them would judge what no one sees.
LEAST = 1e-4
# Of the decoder in the mean of both; the CTC head has the rest. It tells the most on dev, see
# docs/experiments.md.
DECODER_SHARE = 0.7


def logit(confidence: Floats) -> Floats:
    """Logarithm of the odds, the same shape; confidences are kept within 0.0001 and 0.9999."""
    clipped = np.clip(confidence, LEAST, 1 - LEAST)
    return np.asarray(np.log(clipped / (1 - clipped)))


@dataclass(frozen=True)
class Calibration:
    """A sigmoid of the logit (Platt, 1999): two numbers that keep the order of the confidences.

    Raises ValueError for a slope that is not above 0, or a number that is not finite.
    """

    slope: float
    offset: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} is {value!r}; it must be a number")
            if not math.isfinite(value) or (name == "slope" and value <= 0):
                raise ValueError(f"{name} is {value}; it must be finite, and a slope above 0")

    def __call__(self, confidence: Floats) -> Floats:
        """The chance that words of these confidences are right: the same shape, from 0 to 1."""
        return np.asarray(1 / (1 + np.exp(-(self.slope * logit(confidence) + self.offset))))


@dataclass(frozen=True)
class Calibrations:
    """One for each mode; None where none was fitted, and confidences stay as they come.

    `fast` is for all text of that mode, also where it stands in for what the decoder wrote.
    """

    accurate: Calibration | None = None
    fast: Calibration | None = None


def with_confidences(
    words: Sequence[Word], logprobs: Sequence[float], calibration: Calibration | None
) -> tuple[Word, ...]:
    """The words as sure as decoder and CTC head are together, calibrated where there is a calibration.

    Args:
        words: as aligned, with the CTC head's confidences.
        logprobs: natural logarithm of the decoder's probability of each word.
        calibration: of the mode.
    """
    heard = np.array([word.confidence for word in words])
    together = DECODER_SHARE * np.exp(logprobs) + (1 - DECODER_SHARE) * heard
    confidences = together if calibration is None else calibration(together)
    return tuple(
        replace(word, confidence=confidence)
        for word, confidence in zip(words, confidences.tolist(), strict=True)
    )
