"""Average the weights of checkpoints that come from one start.

    python -m training.average A B … --output C

Checkpoints of one run, or of a run and the one that went on from it, lie in one valley of the loss;
their mean is often a little better than each (Izmailov et al., 2018). Judge it on dev. `--int8` stores
the result at half the size, as a checkpoint is shipped; one checkpoint is its own mean.
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
    parser.add_argument("--int8", action="store_true", help="store matrices in int8")
    args = parser.parse_args()
    try:
        average(args.checkpoints, args.output, int8=args.int8)
    except CheckpointError as error:
        parser.error(str(error))
    print(f"{args.output}: the mean of {len(args.checkpoints)} checkpoints")
    return 0


def average(folders: Sequence[Path], output: Path, *, int8: bool = False) -> None:
    """Write the mean of checkpoints to the folder `output`; of one, itself.

    Raises:
        CheckpointError: one cannot be read, or has other sizes than the first.
    """
    first, *others = [load_checkpoint(folder) for folder in folders]
    for folder, other in zip(folders[1:], others, strict=True):
        if other.config.dimensions != first.config.dimensions:
            raise CheckpointError(f"{folder} has other sizes than {folders[0]}")
    states = [checkpoint.network.state_dict() for checkpoint in (first, *others)]
    mean = {name: sum(s[name] for s in states) / len(states) for name in states[0]}
    card = (folders[0] / CARD).read_text(encoding="utf-8")
    provenance = first.config.provenance
    if others:
        names = [folder.name for folder in folders]
        card = f"{card}\nThe mean of {', '.join(names)}.\n"
        provenance = {"mean of": names}
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
