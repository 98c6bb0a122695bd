"""Objectives from a YAML file, and whether a test met them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator

from loadtest.outcomes import QUANTILES, Outcome, summarize, total
from loadtest.recordings import Kind

DEFAULT = Path(__file__).with_name("objectives.yaml")
Share = Annotated[float, Field(ge=0, le=1)]


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
    """Seconds of audio answered in a second."""


@dataclass(frozen=True)
class Check:
    """One objective beside what was measured; `measured` is None where nothing could be."""

    name: str
    limit: float
    measured: float | None
    unit: str
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Whether the objective holds; without a measurement it does not."""
        if self.measured is None:
            return False
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        measured = "not measured" if self.measured is None else _figure(self.measured, self.unit)
        verdict = "met   " if self.met else "MISSED"
        return f"{verdict} {self.name}: {measured}, wanted {sign} {_figure(self.limit, self.unit)}"


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


def judge(objectives: Objectives, outcomes: Sequence[Outcome]) -> list[Check]:
    """Hold a test's outcomes against its objectives."""
    summaries = summarize(outcomes)
    totals = total(outcomes)
    checks = []
    for kind, latency in objectives.latency.items():
        measured = summaries[kind].latency if kind in summaries else {}
        for quantile in QUANTILES:
            limit = getattr(latency, quantile)
            if limit is not None:
                checks.append(Check(f"{quantile} of {kind}", limit, measured.get(quantile), "s"))

    def share(count: int) -> float | None:
        return count / totals.requests if totals.requests else None

    checks.append(Check("failed", objectives.most_failed, share(totals.failed), "%"))
    checks.append(Check("refused", objectives.most_refused, share(totals.refused), "%"))
    if (limit := objectives.slowest_refusal) is not None:
        checks.append(Check("slowest refusal", limit, totals.slowest_refusal, "s"))
    checks.append(Check("RTFx", objectives.least_rtfx, totals.rtfx, "", at_most=False))
    return checks


def _figure(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.2f} %"
    return f"{value:.2f} {unit}".strip()
