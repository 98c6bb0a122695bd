"""A test's results as JSON, and as one HTML page that needs nothing else."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from loadtest.objectives import Check, verdict_of
from loadtest.outcomes import LEAST_VALUES, Outcome, quantiles, summarize, total
from loadtest.recordings import KINDS
from loadtest.watch import UNSEEN, Sample, Server

REPORT, RESULTS = "report.html", "results.json"
WINDOWS = 40
USE_WINDOWS = 15
LEVELS = 10
SHORTEST_WINDOW = 2.0  # seconds
# Okabe and Ito's palette, which people with any colour vision can tell apart.
COLOURS = {"command": "#0072B2", "sentence": "#E69F00", "long": "#009E73", "bad": "#999999"}
LINES = {"p50": "-", "p95": "--", "p99": ":"}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Results:
    """All that a test found.

    Attributes:
        facts: the options that it was made with.
        server: what it was made against.
    """

    facts: dict[str, Any]
    outcomes: Sequence[Outcome]
    samples: Sequence[Sample]
    checks: Sequence[Check]
    server: Server = UNSEEN

    def to_json(self) -> str:
        """The file's text; `read_results` reads it."""
        content = {
            "facts": self.facts,
            "server": self.server._asdict(),
            "met": verdict_of(self.checks) == "met",
            "checks": [
                {**asdict(check), "verdict": check.verdict, "met": check.met}
                for check in self.checks
            ],
            "totals": asdict(total(self.outcomes)),
            "kinds": {kind: asdict(own) for kind, own in summarize(self.outcomes).items()},
            "outcome_fields": Outcome._fields,
            "outcomes": self.outcomes,
            "sample_fields": Sample._fields,
            "samples": self.samples,
        }
        return json.dumps(content) + "\n"


def read_outcomes(path: Path) -> list[Outcome]:
    """Read the outcomes of a results.json. Raises OSError, or ValueError for another file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        return [Outcome(*fields) for fields in content["outcomes"]]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a load test's results.json: {error}") from error


def write_results(folder: Path, results: Results) -> Path:
    """Write report.html and results.json into a folder, made if it is not there; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(results.to_json(), encoding="utf-8")
    page = folder / REPORT
    page.write_text(render(results), encoding="utf-8")
    return page


def render(results: Results) -> str:
    """Make the page; texts from the server are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    outcomes, samples = results.outcomes, results.samples
    # Without requests or samples there is nothing to draw; the tables say so.
    drawn = bool(outcomes) and len(samples) > 1
    unit = "requests due in a second" if results.facts["loop"] == "open" else "callers"
    return environment.get_template("report.html.j2").render(
        facts=results.facts,
        server=results.server._asdict(),
        checks=results.checks,
        verdict=verdict_of(results.checks),
        totals=total(outcomes),
        kinds=summarize(outcomes),
        least_values=LEAST_VALUES,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        against_load=_svg("load", lambda f: _draw_load(f, outcomes, samples, unit), 6.2)
        if drawn
        else "",
        over_time=_svg("time", lambda f: _draw_time(f, outcomes, samples, unit), 11.0)
        if drawn
        else "",
    )


def _svg(name: str, draw: Callable[[Figure], None], height: float) -> Markup:
    figure = Figure(figsize=(11, height), layout="constrained")
    draw(figure)
    file = io.StringIO()
    # Names of parts differ between the page's figures; text stays text.
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return Markup(text[text.index("<svg") :])


def _draw_load(
    figure: Figure, outcomes: Sequence[Outcome], samples: Sequence[Sample], unit: str
) -> None:
    """Latency, throughput and refusals against load."""
    times = np.array([s.time for s in samples])
    looks = np.array([s.load for s in samples])

    def load_at(moments: Sequence[float]) -> Array:
        """That of the last look before each moment."""
        return looks[np.maximum(np.searchsorted(times, moments, side="right") - 1, 0)]

    dues, ends = load_at([o.due for o in outcomes]), load_at([o.ended for o in outcomes])
    edges = np.linspace(dues.min(), dues.max(), LEVELS + 1)[1:-1]
    due_levels, end_levels = np.digitize(dues, edges), np.digitize(ends, edges)
    spans = np.bincount(np.digitize(looks[:-1], edges), np.diff(times), minlength=LEVELS)
    levels = np.unique(due_levels)
    loads = {level: float(dues[due_levels == level].mean()) for level in levels}
    fates = np.array([o.fate for o in outcomes])
    seconds = np.array([o.seconds for o in outcomes])
    audio = np.array([o.audio_seconds for o in outcomes])
    kinds = np.array([o.kind for o in outcomes])

    panels = iter(figure.subplots(2, 3).ravel())
    for kind in KINDS:
        if kind not in kinds:
            continue
        axes = next(panels)
        found = {
            level: quantiles(
                seconds[(due_levels == level) & (kinds == kind) & (fates == "answered")].tolist()
            )
            for level in levels
        }
        for name, style in LINES.items():
            points = [(loads[level], own[name]) for level, own in found.items() if own]
            if points:
                axes.plot(
                    *zip(*points, strict=True), style, color=COLOURS[kind], marker=".", label=name
                )
                axes.legend(frameon=False)
        _label(axes, kind, unit, "seconds")

    throughput, unanswered = next(panels), next(panels)
    passed = [level for level in levels if spans[level] > 0]  # some lay between two looks
    rates = [
        audio[(end_levels == level) & (fates == "answered")].sum() / spans[level]
        for level in passed
    ]
    throughput.plot([loads[level] for level in passed], rates, ".-", color="#333333")
    _label(throughput, "throughput", unit, "audio seconds answered in a second")
    for fate, style, colour in (("refused", ".-", "#D55E00"), ("failed", ".--", "#CC79A7")):
        shares = [100 * (fates[due_levels == level] == fate).mean() for level in levels]
        unanswered.plot(list(loads.values()), shares, style, color=colour, label=fate)
    _label(unanswered, "not answered", unit, "% of the requests")
    unanswered.set_ylim(top=max(1.0, unanswered.get_ylim()[1]))
    unanswered.legend(frameon=False)
    for axes in panels:
        axes.set_visible(False)


def _draw_time(
    figure: Figure, outcomes: Sequence[Outcome], samples: Sequence[Sample], unit: str
) -> None:
    """Everything over time."""
    begin = min(samples[0].time, min(o.due for o in outcomes))
    end = max(samples[-1].time, max(o.ended for o in outcomes))
    width = max((end - begin) / WINDOWS, SHORTEST_WINDOW)
    edges = np.arange(begin, end + width, width)
    middle = (edges[:-1] + edges[1:]) / 2 - begin
    times = np.array([s.time for s in samples])
    load, speed, latency, queue, use, memory = figure.subplots(
        6, 1, sharex=True, height_ratios=(1, 1.3, 1.6, 1, 1.3, 1)
    )

    load.step(times - begin, [s.load for s in samples], where="post", color="#333333")
    _label(load, "", "", f"load:\n{unit}".replace(" due in", "\ndue in"))

    ended = np.array([o.ended for o in outcomes if o.fate == "answered"])
    audio = np.array([o.audio_seconds for o in outcomes if o.fate == "answered"])
    speed.plot(middle, np.histogram(ended, edges, weights=audio)[0] / width, color="#333333")
    _label(speed, "", "", "audio s in a second,\nby end of answer")

    dues = np.array([o.due for o in outcomes])
    places = np.digitize(dues, edges) - 1
    for kind in KINDS:
        for name in ("p50", "p95"):
            curve = np.full(len(middle), np.nan)
            for window in range(len(middle)):
                own = [
                    outcomes[i].seconds
                    for i in np.flatnonzero(places == window).tolist()
                    if outcomes[i].kind == kind and outcomes[i].fate == "answered"
                ]
                if own:
                    curve[window] = quantiles(own)[name]
            if not np.isnan(curve).all():
                latency.plot(
                    middle,
                    curve,
                    LINES[name],
                    color=COLOURS[kind],
                    marker=".",
                    label=f"{kind} {name}",
                )
    latency.set_yscale("log")
    latency.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    latency.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    latency.yaxis.set_minor_formatter(NullFormatter())
    _label(latency, "", "", "latency in seconds,\nby time due")
    latency.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    _draw_seen(queue, times - begin, samples, "queued")
    _label(queue, "", "", "requests that wait\nin the server")

    # A batch is counted when it ends, so short windows would jump.
    _draw_use(use, samples, np.linspace(begin, end, USE_WINDOWS + 1))
    _label(use, "", "", "worker use in %,\nby end of batch")

    _draw_seen(memory, times - begin, samples, "worker_bytes", 1e-6)
    _label(memory, "", "seconds from the start", "workers' memory\nin MB")


def _draw_use(axes: Axes, samples: Sequence[Sample], edges: Array) -> None:
    """Share of the time in which the workers worked, and the mean batch."""
    worked = _per_window(samples, "busy_seconds", edges)
    batches = _per_window(samples, "batches", edges)
    together = _per_window(samples, "batched_requests", edges)
    if worked is None or batches is None or together is None:
        _nothing(axes)
        return
    middle = (edges[:-1] + edges[1:]) / 2 - edges[0]
    workers = max(s.workers or 1 for s in samples)
    share = 100 * worked / np.diff(edges) / workers
    axes.plot(middle, share, ".-", color="#0072B2")
    axes.set_ylim(top=max(100.0, share.max()))
    sizes = np.divide(together, batches, out=np.full_like(together, np.nan), where=batches > 0)
    other = axes.twinx()
    other.plot(middle, sizes, ".--", color="#E69F00")
    other.set_ylabel("requests in a batch", color="#E69F00")
    other.set_ylim(bottom=0)
    other.spines[["top"]].set_visible(False)


def _draw_seen(
    axes: Axes, times: Array, samples: Sequence[Sample], field: str, scale: float = 1.0
) -> None:
    """Plot a field of the samples, or say that it was out of reach."""
    values = [getattr(sample, field) for sample in samples]
    if all(value is None for value in values):
        _nothing(axes)
        return
    axes.plot(
        times, [np.nan if value is None else value * scale for value in values], color="#0072B2"
    )
    axes.set_ylim(bottom=0)


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "out of reach", ha="center", color="#777777", transform=axes.transAxes)


def _per_window(samples: Sequence[Sample], field: str, edges: Array) -> Array | None:
    """How much a counter grew in each window; None when it was out of reach."""
    seen = [(s.time, getattr(s, field)) for s in samples if getattr(s, field) is not None]
    if len(seen) < 2:
        return None
    times, values = zip(*seen, strict=True)
    return np.diff(np.interp(edges, times, values))


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)
