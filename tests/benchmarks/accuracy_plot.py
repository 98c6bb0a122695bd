"""Word error rate against speed, one panel for each number of threads."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator

from tests.benchmarks.accuracy_results import Result
from training.files import atomic_writer

# Okabe and Ito's palette, which people with any colour vision can tell apart.
_COLOURS = {
    "Steno accurate": "#0072B2",
    "Steno fast": "#56B4E9",
    "Whisper tiny.en": "#E69F00",
    "Whisper base": "#009E73",
    "PocketSphinx": "#777777",
}
_MARKERS = {
    "int8": "o",
    "bfloat16, beam 1": "X",
    "bfloat16": "h",
    "float32, beam 1": "P",
    "float32": "s",
    "float32, beam 5": "s",
    "int8, beam 5": "^",
    "int8, beam 1": "v",
    "": "D",
}
_ERROR_TICKS = (2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 100)  # %


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw all systems as an SVG; the best corner is below on the right."""
    threads = sorted({n for result in results for n in result.rtfx})
    figure = Figure(figsize=(3 + 5 * len(threads), 6), layout="constrained")
    panels = figure.subplots(1, len(threads), sharex=True, sharey=True, squeeze=False)[0]
    for axes, count in zip(panels, threads, strict=True):
        for result in results:
            if count in result.rtfx:
                _draw_system(axes, result, count)
        axes.set(
            title=f"{count} thread{'s' if count > 1 else ''}",
            xlabel="RTFx: seconds of audio transcribed in a second",
            xscale="log",
            yscale="log",
        )
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_locator(FixedLocator([tick / 100 for tick in _ERROR_TICKS]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes.minorticks_off()
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("WER, with its 95 % interval")
    # The first panel has all systems: each can use one thread.
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    # Neither a date nor random names: the same figures give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "accuracy"}), atomic_writer(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})


def _draw_system(axes: Axes, result: Result, threads: int) -> None:
    system, wer, spread = result.system, result.scores.wer, result.rtfx[threads]
    colour = _COLOURS[system.family]
    axes.errorbar(
        spread.median,
        wer.value,
        xerr=[[spread.median - min(spread.rounds)], [max(spread.rounds) - spread.median]],
        yerr=[[max(wer.value - wer.low, 0)], [max(wer.high - wer.value, 0)]],
        label=system.name,
        fmt=_MARKERS[system.setting],
        color=colour,
        markerfacecolor="white" if system.batched else colour,
        markersize=7,
        elinewidth=0.6,
    )
