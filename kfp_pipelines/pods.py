"""What a pod asks the cluster for, and whether it got that."""

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from kubernetes.utils.quantity import parse_quantity

# CPUs that the pod asked for; the pipeline sets it, for the pod sees those of the whole node.
CPUS = "STENO_CPUS"
AMOUNT = re.compile(r"(?P<number>[1-9]\d*)(?P<unit>[MGT]i?)")


class PodError(ValueError):
    """A pod cannot be as asked, or is not; the message says what would be right."""


class Size(NamedTuple):
    """What a pod asks for, as text: Kubeflow makes a pod's resources of nothing else."""

    gpus: str
    cpus: str
    memory: str


def size(gpus: int, cpus_per_gpu: int, memory_per_gpu: str) -> Size:
    """Size a pod by its GPUs; one without any is as large as one with a single GPU.

    Raises:
        PodError: a value is none that a pod can have.
    """
    if gpus < 0 or cpus_per_gpu < 1:
        raise PodError(
            f"{gpus} GPUs with {cpus_per_gpu} CPUs for each cannot be; give 0 or more, and 1 or more"
        )
    match = amount("memory_per_gpu", memory_per_gpu)
    times = max(1, gpus)
    memory = f"{times * int(match['number'])}{match['unit']}"
    return Size(str(gpus), str(times * cpus_per_gpu), memory)


def amount(name: str, text: str) -> re.Match[str]:
    """Read an amount of memory or disk.

    Raises:
        PodError: it is none.
    """
    match = AMOUNT.fullmatch(text)
    if match is None:
        raise PodError(f"{name} is {text!r}; give an amount such as 24Gi")
    return match


def cpus() -> int:
    """CPUs that this process may keep busy."""
    cores = len(os.sched_getaffinity(0))
    return min(cores, int(os.environ.get(CPUS, cores)))


def gpus() -> int:
    """GPUs that this process sees."""
    return torch.cuda.device_count()


def check_gpus(asked: int) -> None:
    """Refuse to go on without the GPUs that the pod asked for: hours on a CPU would be lost.

    Raises:
        PodError: torch sees fewer.
    """
    if gpus() < asked:
        raise PodError(
            f"the pod asked for {asked} GPUs and torch sees {gpus()}; is the image built with"
            " TORCH=cuda, and does the node's driver fit?"
        )


def check_scratch(folder: Path, asked: str) -> None:
    """Refuse a node whose disk will be full in the midst of it.

    Raises:
        PodError: less is free in `folder` than `asked`.
    """
    free = shutil.disk_usage(folder).free
    if free < parse_quantity(asked):
        raise PodError(
            f"{folder} has {free / 2**30:.0f} GiB free and scratch_size is {asked}; choose nodes"
            " with larger disks by train_node_selector, or ask for less if the recordings fit"
        )
