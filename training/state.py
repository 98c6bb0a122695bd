"""What a training run needs to go on after it was stopped, and the running average of its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.files import atomic_writer

STATE = "state.pt"


class Average:
    """Exponential running average of the weights (EMA), in float32.

    The decay grows from 0.1 to its value as (1 + n) / (10 + n) with the number n of updates, so that
    the start does not weigh on a short run.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's weights after a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in module.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: the one that is going on, from 0.
        batch: batches of it that are done; when all are, it remains to be judged on dev.
        step: steps of the optimizer in all.
        best: lowest WER on dev so far; None before the first evaluation.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None


def save_state(
    folder: Path,
    progress: Progress,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
    identity: str,
) -> None:
    """Write the state of a run, whole or not at all.

    Args:
        identity: text that a run must have in common with the one that resumes it.
    """
    values = {
        "identity": identity,
        "progress": vars(progress),
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.weights,
        "updates": average.updates,
    }
    with atomic_writer(folder / STATE) as file:
        torch.save(values, file)


def load_state(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
    identity: str,
) -> Progress | None:
    """Go back to a saved state; None if there is none.

    Raises:
        ValueError: the state is of a run with another configuration, data, start or number of
            processes.
    """
    for partial in folder.glob(f".{STATE}.*.partial"):  # of a process that was killed as it wrote
        partial.unlink(missing_ok=True)  # another process of the run may be as quick
    path = folder / STATE
    if not path.exists():
        return None
    values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if values["identity"] != identity:
        raise ValueError(
            f"{path} is of a run with another configuration, other data, another start or another "
            f"number of processes; resume with {folder / 'config.yaml'} and what it names as they "
            "were, or choose another output"
        )
    network.load_state_dict(values["network"])
    optimizer.load_state_dict(values["optimizer"])
    weights: dict[str, Tensor] = values["average"]
    for name, value in weights.items():
        average.weights[name].copy_(value)
    average.updates = values["updates"]
    return Progress(**values["progress"])
