"""The evaluation as one HTML page that a person reads: no script, nothing loaded from outside."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from model.search import COMPRESSION_RATIO_LIMIT
from training.results import Evaluation, SystemResult
from training.scoring import (
    DURATION_CLASSES,
    NORMALIZER,
    REPEATED_WORDS_LIMIT,
    RESAMPLES,
    Rate,
)

_MOST_SPEAKERS = 40
_MOST_WORST = 15
_MOST_CONFUSIONS = 15
# Classes of an utterance's own error rate: name, from (inclusive), below.
_HISTOGRAM = (
    ("0", 0.0, 1e-9),
    *((f"{low}–{low + 10}", low / 100 or 1e-9, (low + 10) / 100) for low in range(0, 100, 10)),
    ("≥ 100", 1.0, math.inf),
)


@dataclass(frozen=True)
class _Row:
    """One group of utterances in a chart, with a rate for each system."""

    name: str
    detail: str
    rates: tuple[Rate, ...]


@dataclass(frozen=True)
class _Chart:
    """Horizontal bars; `ticks` are rates, the last one is the right edge."""

    rows: tuple[_Row, ...]
    ticks: tuple[float, ...]

    def place(self, rate: float) -> str:
        """Where a rate lies between the edges, in CSS per cent."""
        return f"{100 * min(rate / self.ticks[-1], 1):.2f}%"


@dataclass(frozen=True)
class _Histogram:
    """Vertical bars: the share of utterances in each class, for each system."""

    classes: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...]  # systems, classes
    ticks: tuple[float, ...]


def render_report(evaluation: Evaluation) -> str:
    """Make the page. Texts and names from the data are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["interval"] = _interval
    environment.filters["count"] = _count
    environment.filters["duration"] = _duration
    template = environment.get_template("report.html.j2")
    systems = evaluation.systems
    worst_first = sorted(
        systems[0].scores.by_speaker, key=lambda name: -systems[0].scores.by_speaker[name].value
    )
    return template.render(
        conditions=evaluation.conditions,
        systems=systems,
        by_duration=_chart(
            systems,
            [name for name, _, _ in DURATION_CLASSES if name in systems[0].scores.by_duration],
            lambda system: system.scores.by_duration,
        ),
        by_speaker=_chart(
            systems, worst_first[:_MOST_SPEAKERS], lambda system: system.scores.by_speaker
        ),
        speakers=len(worst_first),
        histogram=_histogram(systems),
        normalizer=NORMALIZER,
        resamples=RESAMPLES,
        repeated_words_limit=REPEATED_WORDS_LIMIT,
        compression_limit=COMPRESSION_RATIO_LIMIT,
        most_worst=_MOST_WORST,
        most_confusions=_MOST_CONFUSIONS,
    )


def _chart(
    systems: Sequence[SystemResult],
    names: Sequence[str],
    rates_of: Callable[[SystemResult], Mapping[str, Rate]],
) -> _Chart:
    rows = []
    for name in names:
        first = rates_of(systems[0])[name]
        rows.append(
            _Row(
                name=name,
                detail=f"{_count(first.utterances, 'utterance')}, {_duration(first.seconds)}",
                rates=tuple(rates_of(system)[name] for system in systems),
            )
        )
    highest = max(rate.high for row in rows for rate in row.rates)
    return _Chart(tuple(rows), _ticks(highest))


def _histogram(systems: Sequence[SystemResult]) -> _Histogram:
    shares = []
    for system in systems:
        rates = [scored.word_errors / scored.words for scored in system.scores.utterances]
        shares.append(
            tuple(
                sum(low <= rate < high for rate in rates) / len(rates)
                for _, low, high in _HISTOGRAM
            )
        )
    return _Histogram(
        classes=tuple(name for name, _, _ in _HISTOGRAM),
        shares=tuple(shares),
        ticks=_ticks(max(map(max, shares))),
    )


def _ticks(highest: float) -> tuple[float, ...]:
    """0 and up to six round rates above it, the last at or above `highest`."""
    step = next(
        step
        for power in range(-3, 5)
        for step in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)
        if step * 6 >= highest
    )
    count = max(1, math.ceil(highest / step - 1e-9))
    return tuple(step * index for index in range(count + 1))


def _percent(share: float, decimals: int = 1) -> str:
    return f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"


def _interval(rate: Rate, decimals: int = 1) -> str:
    return f"{100 * rate.low:.{decimals}f}\N{EN DASH}{100 * rate.high:.{decimals}f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    if seconds < 3600:
        return f"{seconds / 60:.1f}\N{NO-BREAK SPACE}min"
    return f"{seconds / 3600:.2f}\N{NO-BREAK SPACE}h"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")
