"""The processes of a run, and the device and precision that each computes with."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """This process among those that `torchrun` started; alone without it.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
        device: what it computes on.
    """

    rank: int
    world: int
    device: torch.device

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
        if world > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        try:
            yield cls(rank, world, device)
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
            dist.barrier()

    def autocast(self, precision: str) -> bool:
        """Whether the forward pass runs in bfloat16.

        With `auto`, on a GPU, and on a CPU with matrix units for it (AMX): about seven times as fast
        as float32 there, while on other CPUs it is slower.
        """
        if precision == "auto":
            return self.device.type == "cuda" or torch.cpu._is_amx_tile_supported()
        return precision == "bfloat16"

    def autocast_context(self, precision: str) -> AbstractContextManager[object]:
        """The context that the forward pass runs in."""
        if self.autocast(precision):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()
