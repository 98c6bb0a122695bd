"""The processes of a run, and the device and precision that each computes with."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from model.precision import has_bfloat16_units

# The first process evaluates dev alone while the others wait.
WAIT = timedelta(hours=6)
# For all else: a process that hangs, or a node that is lost, must not hold the others' GPUs for hours.
# More than the first process takes to hand on its state.
STEP = timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """This process among those that `torchrun` started; alone without it.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
        device: what it computes on.
        patient: all processes, for `wait`; None if there is one.
    """

    rank: int
    world: int
    device: torch.device
    patient: dist.ProcessGroup | None = None

    @classmethod
    @contextmanager
    def start(cls) -> Iterator["Processes"]:
        """Join the other processes for the length of a block."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        rank = int(os.environ.get("RANK", "0"))
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        patient = None
        if world > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=STEP)
            patient = dist.new_group(backend="gloo", timeout=WAIT)
        try:
            yield cls(rank, world, device, patient)
        finally:
            if world > 1:
                dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process writes the log and the checkpoints."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier(self.patient)

    def agree(self, value: object) -> bool:
        """Whether all processes hold the same value."""
        if self.world == 1:
            return True
        values: list[object] = [None] * self.world
        dist.all_gather_object(values, value)
        return all(other == value for other in values)

    def any(self, value: bool) -> bool:
        """Whether it is true in one of the processes; each must ask."""
        if self.world == 1:
            return value
        found = torch.tensor(int(value), device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def autocast(self, precision: str) -> bool:
        """Whether the forward pass runs in bfloat16.

        With `auto`, where the device has matrix units for it.
        """
        if precision == "auto":
            return has_bfloat16_units(self.device)
        return precision == "bfloat16"

    def autocast_context(self, precision: str) -> AbstractContextManager[object]:
        """The context that the forward pass runs in."""
        if self.autocast(precision):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()
