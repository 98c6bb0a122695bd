"""The learning curve of a run: what log.jsonl holds, as a picture."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from training.manifest import read_json_lines

# Okabe and Ito's palette, as in training.corpus_statistics.
_LOSS, _ACCURATE, _FAST = "#0072B2", "#D55E00", "#009E73"


def draw_curve(log: Path) -> bytes:
    """Draw the loss of each step and the WERs on dev as a PNG.

    Raises:
        OSError: the log cannot be read.
        ValueError: it holds no step.
    """
    lines = read_json_lines(log)
    steps = [line for line in lines if line["kind"] == "train"]
    judged = [line for line in lines if line["kind"] == "dev"]
    if not steps:
        raise ValueError(f"{log} holds no step of training")
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    loss, rates = figure.subplots(1, 2)
    loss.plot([s["step"] for s in steps], [s["loss_total"] for s in steps], color=_LOSS)
    loss.set(title="Loss", xlabel="step", ylabel="loss")
    for mode, colour, marker in (("accurate", _ACCURATE, "o"), ("fast", _FAST, "s")):
        rates.plot(
            [line["step"] for line in judged],
            [100 * line[f"wer_{mode}"] for line in judged],
            color=colour,
            marker=marker,
            label=f"mode={mode}",
        )
    rates.set(title="WER on dev after each epoch", xlabel="step", ylabel="%")
    rates.set_ylim(bottom=0)
    rates.legend(frameon=False)
    for axes in (loss, rates):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", linewidth=0.7)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
