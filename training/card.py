"""The model card of a version that the pipeline made: where it came from and how good it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.checkpoint import CARD


def release_card(
    checkpoint: Path,
    metrics: Mapping[str, Any],
    verdict: str,
    lineage: Mapping[str, str],
) -> str:
    """Markdown for a candidate: figures and lineage first, then how it was trained.

    Args:
        checkpoint: the candidate's folder.
        metrics: its metrics.json.
        verdict: what the gate said.
        lineage: what it was made from, as name and value: data, start, code.
    """
    trained = (checkpoint / CARD).read_text(encoding="utf-8")
    rows = []
    for mode, figures in metrics["systems"].items():
        wer = figures["wer"]
        rows.append(
            f"| `mode={mode}` | {wer['rate']:.2%} | {wer['low']:.2%}–{wer['high']:.2%} |"
            f" {figures['cer']['rate']:.2%} | {figures['rtfx']:.1f} |"
        )
    made_from = "\n".join(f"| {name} | `{value}` |" for name, value in lineage.items())
    return (
        "# Steno, retrained\n\n"
        f"{verdict}\n\n"
        "| | |\n|---|---|\n"
        f"{made_from}\n\n"
        "| | WER | 95 % interval | CER | s of audio in a second |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\nMeasured on {metrics['utterances']} utterances of {metrics['speakers']} named"
        f" speakers, {metrics['seconds'] / 60:.1f} minutes, none of them trained on; WER with"
        f" `{metrics['normalizer']}`.\n\n"
        "## How it was trained\n\n" + trained.removeprefix("# Steno checkpoint").lstrip()
    )
