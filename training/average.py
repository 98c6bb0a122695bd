"""Average the weights of checkpoints that come from one start.

    python -m training.average A B … --output C [--start W --start-share 0.4]

Checkpoints of one run, or of a run and the one that went on from it, lie in one valley of the loss;
their mean is often a little better than each (Izmailov et al., 2018). Judge it on dev. `--int8` stores
the result at half the size, as a checkpoint is shipped; one checkpoint is its own mean.

A few hours of speech teach the encoder those hours, and cost it some of what it knew. `--start` mixes
the weights that training began with back in: fewer errors than either has, above all in noise
(Wortsman et al., "Robust fine-tuning of zero-shot models", 2022). The CTC head, which is random in a
start, stays as trained.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint import CARD, CheckpointError, load_checkpoint, save_checkpoint


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.average", description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="checkpoint that training began with")
    parser.add_argument(
        "--start-share", type=float, default=0.4, help="weight of --start, from 0 to 1"
    )
    parser.add_argument("--int8", action="store_true", help="store matrices in int8")
    args = parser.parse_args()
    try:
        average(
            args.checkpoints,
            args.output,
            int8=args.int8,
            start=args.start,
            start_share=args.start_share,
        )
    except (CheckpointError, OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{args.output}: the mean of {len(args.checkpoints)} checkpoints")
    return 0


def average(
    folders: Sequence[Path],
    output: Path,
    *,
    int8: bool = False,
    start: Path | None = None,
    start_share: float = 0.4,
) -> None:
    """Write the mean of checkpoints to the folder `output`; of one, itself.

    Args:
        folders: of the checkpoints.
        output: where.
        int8: store matrices in int8.
        start: checkpoint whose encoder and decoder are mixed into the mean.
        start_share: its weight.

    Raises:
        CheckpointError: one cannot be read, or has other sizes, labels or settings than the first.
        OSError: the first has no model card, or the output cannot be written.
        ValueError: the share is not one.
    """
    if not 0 <= start_share <= 1:
        raise ValueError(f"the start's share is {start_share}; it must be from 0 to 1")
    first, *others = [load_checkpoint(folder) for folder in folders]
    before = [] if start is None else [load_checkpoint(start)]
    named = [*folders[1:], *([] if start is None else [start])]
    for folder, other in zip(named, others + before, strict=True):
        if other.config.dimensions != first.config.dimensions:
            raise CheckpointError(f"{folder} has other sizes than {folders[0]}")
        same = ["tail_seconds", "multilingual", "language"]
        if other not in before:  # of the start's CTC head nothing is taken
            same.append("characters")
        for name in same:
            own, its = getattr(first.config, name), getattr(other.config, name)
            if own != its:
                raise CheckpointError(
                    f"{folder} has {name} {its!r} and {folders[0]} {own!r}; only checkpoints that mean "
                    "the same by their numbers have a mean"
                )
    states = [checkpoint.network.state_dict() for checkpoint in (first, *others)]
    mean = {name: sum(s[name] for s in states) / len(states) for name in states[0]}
    if before:
        old = before[0].network.state_dict()
        for name, value in mean.items():
            if not name.startswith("ctc."):
                mean[name] = value.lerp(old[name], start_share)
    card = (folders[0] / CARD).read_text(encoding="utf-8")
    provenance = first.config.provenance
    if others:
        names = [folder.name for folder in folders]
        card = f"{card}\nThe mean of {', '.join(names)}.\n"
        provenance = {"mean of": names}
    if start is not None:
        card = f"{card}\nMixed with its start, {start.name}, of weight {start_share}.\n"
        provenance = {**provenance, "start of weight": [start.name, start_share]}
    save_checkpoint(
        output,
        first,
        card,
        weights=mean,
        dtype=torch.int8 if int8 else torch.float16,
        provenance=provenance,
    )


if __name__ == "__main__":
    sys.exit(main())
