"""What a measurement was made on: it belongs beside every figure."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

import torch

_PACKAGES = ("torch", "torchaudio", "av", "soundfile", "tokenizers", "jiwer", "whisper-normalizer")


@dataclass(frozen=True)
class Machine:
    """The machine and the software, as far as they bear on speed and text."""

    processor: str
    cores: int  # that this process may use
    threads: int  # that torch uses in one operation
    gpu: str | None  # the one that the network ran on
    versions: dict[str, str]

    @classmethod
    def here(cls, device: torch.device) -> Self:
        """The machine that this runs on; `device` is where the network is."""
        return cls(
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)),
            threads=torch.get_num_threads(),
            gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            versions={
                "python": platform.python_version(),
                **{package: version(package) for package in _PACKAGES},
            },
        )

    def __str__(self) -> str:
        cpu = f"{self.processor}, cores: {self.cores}, torch threads: {self.threads}"
        return f"{self.gpu} ({cpu})" if self.gpu else cpu


def _processor() -> str:
    """The processor's name; Linux has it only in /proc/cpuinfo."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()  # ARM kernels give no name
