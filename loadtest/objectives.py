"""Objectives from a YAML file, and whether a test met them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator

from loadtest.outcomes import LEAST_VALUES, QUANTILES, Outcome, summarize, total
from loadtest.recordings import KINDS, Kind

DEFAULT = Path(__file__).with_name("objectives.yaml")
# Of the audio that an open loop offers, what must be answered: no server has more to answer, and
# the last answers come after the last arrival (in a test of a minute up to 15 s).
OFFERED_SHARE = 0.8
Share = Annotated[float, Field(ge=0, le=1)]
Verdict = Literal["met", "missed", "too few"]


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Latency(_Checked):
    """The most seconds that a quantile of one kind's answers may take; None is no objective."""

    p50: PositiveFloat | None = None
    p95: PositiveFloat | None = None
    p99: PositiveFloat | None = None

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        given = [value for value in (self.p50, self.p95, self.p99) if value is not None]
        if given != sorted(given):
            raise ValueError("a higher quantile cannot have a lower limit")
        return self


class Objectives(_Checked):
    """What a load test must show; the YAML file's keys. Everything is optional."""

    latency: Mapping[Kind, Latency] = {}
    """By kind of request."""
    most_failed: Share = 0.0
    """Share of all requests that may fail."""
    most_refused: Share = 1.0
    """Share of all requests that may be refused with 503."""
    slowest_refusal: PositiveFloat | None = None
    """Seconds within which every 503 must come; None is no objective, and no 503 misses it."""
    least_rtfx: NonNegativeFloat = 0.0
    """Seconds of audio answered in a second; in the open loop at most OFFERED_SHARE of what is due."""


@dataclass(frozen=True)
class Check:
    """One objective beside what was measured.

    Attributes:
        measured: None where nothing could be.
        count: how many were measured.
        at_most: whether the limit is the most that may be, or the least that must.
        least: so many take a verdict.
    """

    name: str
    limit: float
    measured: float | None
    unit: str
    count: int
    at_most: bool = True
    least: int = 0

    @property
    def verdict(self) -> Verdict:
        """Whether the objective holds; without any measurement it does not."""
        if self.measured is None:
            return "missed"
        if self.count < self.least:
            return "too few"
        held = self.measured <= self.limit if self.at_most else self.measured >= self.limit
        return "met" if held else "missed"

    @property
    def met(self) -> bool:
        """Whether the objective is known to hold."""
        return self.verdict == "met"

    def __str__(self) -> str:
        wanted = f"wanted {'≤' if self.at_most else '≥'} {_figure(self.limit, self.unit)}"
        if self.verdict == "too few":
            return f"too few {self.name}: {self.count} of {self.least}, {wanted}"
        measured = "not measured" if self.measured is None else _figure(self.measured, self.unit)
        word = "met    " if self.met else "MISSED "
        return f"{word} {self.name}: {measured}, {wanted}, n = {self.count}"


def verdict_of(checks: Sequence[Check]) -> Verdict:
    """The verdict of a whole test.

    "missed" where one is, and "too few" where quantiles are asked for and none could be decided.
    """
    if any(check.verdict == "missed" for check in checks):
        return "missed"
    quantiles = [check for check in checks if check.least]
    undecided = all(check.verdict == "too few" for check in quantiles)
    return "too few" if quantiles and undecided else "met"


def read_objectives(path: Path) -> Objectives:
    """Read a YAML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not YAML, or has an unknown key or an impossible value.
    """
    try:
        return Objectives.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def judge(
    objectives: Objectives,
    outcomes: Sequence[Outcome],
    kinds: Collection[Kind] = KINDS,
    open_loop: bool = False,
) -> list[Check]:
    """Hold a test's outcomes against its objectives.

    Args:
        objectives: what it must show.
        outcomes: of all its requests.
        kinds: that are in its mix; the others' latency is not judged.
        open_loop: whether the arrivals alone say how much audio was offered.
    """
    summaries = summarize(outcomes)
    totals = total(outcomes)
    checks = []
    for kind, latency in objectives.latency.items():
        if kind not in kinds:
            continue
        own = summaries.get(kind)
        for quantile in QUANTILES:
            limit = getattr(latency, quantile)
            if limit is not None:
                checks.append(
                    Check(
                        f"{quantile} of {kind}",
                        limit,
                        own.latency.get(quantile) if own else None,
                        "s",
                        own.answered if own else 0,
                        least=LEAST_VALUES[quantile],
                    )
                )

    def share(count: int) -> float | None:
        return count / totals.requests if totals.requests else None

    sent = totals.requests
    checks.append(Check("failed", objectives.most_failed, share(totals.failed), "%", sent))
    checks.append(Check("refused", objectives.most_refused, share(totals.refused), "%", sent))
    if (limit := objectives.slowest_refusal) is not None:
        slowest = totals.slowest_refusal
        checks.append(Check("slowest refusal", limit, slowest, "s", totals.refused))
    answered = sent - totals.refused - totals.failed
    least_rtfx = objectives.least_rtfx
    if open_loop and totals.offered is not None:
        least_rtfx = min(least_rtfx, OFFERED_SHARE * totals.offered)
    checks.append(Check("RTFx", least_rtfx, totals.rtfx, "", answered, at_most=False))
    return checks


def _figure(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.2f} %"
    return f"{value:.2f} {unit}".strip()
