"""What became of each request, and figures over many of them."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from loadtest.recordings import KINDS, Kind

Fate = Literal["answered", "refused", "failed"]
MOST_REASONS = 20
QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
# So many values a quantile takes: with fewer it would be hardly more than the largest.
LEAST_VALUES = {name: round(1 / (1 - share)) for name, share in QUANTILES.items()}


class Outcome(NamedTuple):
    """One request. A tuple, because Locust's workers send many of them to their master.

    Attributes:
        due: when it was to be sent, in seconds since the epoch.
        seconds: from then to the end of the answer.
        audio_seconds: 0 for a bad file.
        fate: "answered" as it must be (a bad file with a 4xx), "refused" with 503, or "failed".
        reason: what was wrong; empty when answered.
    """

    kind: Kind
    due: float
    seconds: float
    audio_seconds: float
    fate: Fate
    reason: str = ""

    @property
    def ended(self) -> float:
        """When the answer had come, in seconds since the epoch."""
        return self.due + self.seconds


@dataclass(frozen=True)
class Summary:
    """Figures of one kind of request.

    Attributes:
        latency: seconds by quantile, of the answered ones; empty without any.
    """

    requests: int
    answered: int
    refused: int
    failed: int
    latency: dict[str, float]


@dataclass(frozen=True)
class Totals:
    """Figures of a whole test.

    Attributes:
        duration: seconds from the first request to the last answer.
        slowest_refusal: seconds of the 503 that took longest; None without any.
        rtfx: seconds of audio answered in a second.
        offered: seconds of audio due in a second, from the first request to the last; None of fewer
            than two.
        reasons: how often each reason of a failure came, the most frequent first.
    """

    requests: int
    refused: int
    slowest_refusal: float | None
    failed: int
    duration: float
    audio_seconds: float
    rtfx: float
    offered: float | None
    reasons: dict[str, int]


def lone(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those that shared the service with no other, from when they were due until they were answered."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.due)
    following = [*(outcome.due for outcome in ordered), math.inf][1:]
    found = []
    busy_until = -math.inf
    for outcome, next_due in zip(ordered, following, strict=True):
        if busy_until <= outcome.due and outcome.ended <= next_due:
            found.append(outcome)
        busy_until = max(busy_until, outcome.ended)
    return found


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Quantiles by name, none of nothing."""
    if not len(seconds):
        return {}
    values = np.quantile(np.asarray(seconds), list(QUANTILES.values()))
    return {name: float(value) for name, value in zip(QUANTILES, values, strict=True)}


def summarize(outcomes: Iterable[Outcome]) -> dict[Kind, Summary]:
    """Figures by kind, of the kinds that were sent."""
    by_kind: dict[Kind, list[Outcome]] = {kind: [] for kind in KINDS}
    for outcome in outcomes:
        by_kind[outcome.kind].append(outcome)
    summaries = {}
    for kind, own in by_kind.items():
        if own:
            fates = Counter(outcome.fate for outcome in own)
            answered = [outcome.seconds for outcome in own if outcome.fate == "answered"]
            summaries[kind] = Summary(
                requests=len(own),
                answered=fates["answered"],
                refused=fates["refused"],
                failed=fates["failed"],
                latency=quantiles(answered),
            )
    return summaries


def total(outcomes: Sequence[Outcome]) -> Totals:
    """Figures over all kinds."""
    fates = Counter(outcome.fate for outcome in outcomes)
    audio = sum(o.audio_seconds for o in outcomes if o.fate == "answered")
    duration = max(o.ended for o in outcomes) - min(o.due for o in outcomes) if outcomes else 0.0
    sending = max(o.due for o in outcomes) - min(o.due for o in outcomes) if outcomes else 0.0
    return Totals(
        requests=len(outcomes),
        refused=fates["refused"],
        slowest_refusal=max((o.seconds for o in outcomes if o.fate == "refused"), default=None),
        failed=fates["failed"],
        duration=duration,
        audio_seconds=audio,
        rtfx=audio / duration if duration else 0.0,
        offered=sum(o.audio_seconds for o in outcomes) / sending if sending else None,
        reasons=dict(
            Counter(o.reason for o in outcomes if o.fate == "failed").most_common(MOST_REASONS)
        ),
    )
