"""How long a worker takes for a batch: a model with four costs, and its measured values."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat
from scipy.optimize import nnls

DEFAULT = Path(__file__).with_name("service_time.json")


def shape_of(
    lengths: Sequence[float], piece_seconds: float, max_batch_seconds: float
) -> tuple[float, float]:
    """Seconds of audio of a batch, and the sum of its groups' longest pieces.

    As a lane of the recognizer does: recordings are cut into pieces, sorted, and put together until the
    padded seconds would pass the limit. The encoder's work grows with the first figure, since it has
    next to no padding on a CPU (`Recognizer._parts`); the decoder goes on until a group's longest
    piece is written, so part of its work grows with the second.

    Args:
        lengths: seconds of each recording; 0 for one that is refused.
    """
    pieces = sorted(
        length / count
        for length in lengths
        if length > 0
        for count in [math.ceil(length / piece_seconds)]
        for _ in range(count)
    )
    longest = width = 0.0
    members = 0
    for piece in pieces:
        if members and piece * (members + 1) > max_batch_seconds:
            longest += width
            members = 0
        members += 1
        width = piece
    return sum(pieces), longest + width


class ServiceTime(BaseModel):
    """Seconds for a batch of a worker that is alone; the costs are fitted to measurements.

    Attributes:
        per_batch: whatever is in the batch.
        per_request: reading, answering.
        per_audio_second: of audio through the encoder, and what of the decoder grows with it.
        per_longest_second: of the longest piece of each group.
        spread: standard deviation of the logarithm of measured over fitted.
        piece_seconds, max_batch_seconds: the recognizer's limits, see `shape_of`.
        speeds: of each of 1, 2, … workers that are at work at once on the same processors, to that of
            one alone.
        measured: on what, when, by which command; for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_batch: NonNegativeFloat
    per_request: NonNegativeFloat
    per_audio_second: NonNegativeFloat
    per_longest_second: NonNegativeFloat
    spread: NonNegativeFloat
    piece_seconds: PositiveFloat
    max_batch_seconds: PositiveFloat
    speeds: tuple[PositiveFloat, ...] = (1.0,)
    measured: dict[str, str | int | float] = {}

    @classmethod
    def fit(
        cls,
        batches: Sequence[tuple[Sequence[float], float]],
        piece_seconds: float,
        max_batch_seconds: float,
    ) -> Self:
        """Fit to batches (lengths of their recordings, seconds taken).

        Least squares of the relative errors, so that a short batch counts as much as a long one, with no
        cost below 0; then one factor for all, which brings the deviations' mean logarithm to 0.

        Raises:
            ValueError: fewer than 8 batches.
        """
        if len(batches) < 8:
            raise ValueError(f"{len(batches)} batches are too few to fit; measure 8 or more")
        taken = np.array([seconds for _, seconds in batches])
        costs = np.array(
            [
                [1, len(lengths), *shape_of(lengths, piece_seconds, max_batch_seconds)]
                for lengths, _ in batches
            ]
        )
        found, _ = nnls(costs / taken[:, None], np.ones(len(taken)))
        # Least squares of ratios to what was taken draw below it, the more the times spread. The
        # deviations that a simulation draws are around the median.
        deviations = np.log(taken / np.maximum(costs @ found, 1e-9))
        found *= math.exp(deviations.mean())
        return cls(
            per_batch=found[0],
            per_request=found[1],
            per_audio_second=found[2],
            per_longest_second=found[3],
            spread=float(deviations.std()),
            piece_seconds=piece_seconds,
            max_batch_seconds=max_batch_seconds,
        )

    def seconds(self, lengths: Sequence[float]) -> float:
        """Expected seconds for a batch of recordings of these lengths."""
        audio, longest = shape_of(lengths, self.piece_seconds, self.max_batch_seconds)
        return (
            self.per_batch
            + self.per_request * len(lengths)
            + self.per_audio_second * audio
            + self.per_longest_second * longest
        )

    def slowed(self, factor: float) -> Self:
        """The same on a machine that takes `factor` times as long."""
        costs = ("per_batch", "per_request", "per_audio_second", "per_longest_second")
        return self.model_copy(update={name: factor * getattr(self, name) for name in costs})

    def speed(self, workers: int) -> float:
        """How fast each of so many workers at work is, to one alone.

        More than were measured share what the most had together.
        """
        known = min(workers, len(self.speeds))
        return self.speeds[known - 1] * known / workers


def read_service_time(path: Path = DEFAULT) -> ServiceTime:
    """Read what was measured. Raises OSError, or ValueError for another file."""
    return ServiceTime.model_validate_json(path.read_text(encoding="utf-8"))
