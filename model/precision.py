"""Which numbers a device computes fast with."""

from functools import cache
from typing import Literal

import torch

Precision = Literal["int8", "bfloat16", "float32"]


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """What a device can multiply matrices in, the fastest first."""
    offered: tuple[tuple[Precision, bool], ...] = (
        ("int8", has_int8_units(device)),
        ("bfloat16", has_bfloat16_units(device)),
        ("float32", True),
    )
    return tuple(precision for precision, has_units in offered if has_units)


def has_int8_units(device: torch.device) -> bool:
    """Whether a device is a CPU for which FBGEMM multiplies int8 (AVX2 and more)."""
    return device.type == "cpu" and torch.cpu._is_avx2_supported()


@cache
def sums_int8_in_full() -> bool:
    """Whether the CPU sums products of int8 in 32 bits at once (AVX-512's VNNI).

    Others sum pairs of them in 16 bits first, for which `model.int8` has smaller weights.
    """
    return torch.cpu._is_vnni_supported()


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices faster than float32 ones.

    NVIDIA GPUs do from Ampere on, CPUs with AMX tiles or with AVX-512's dot products (AMD from Zen 4
    on). Older GPUs (T4, V100) and CPUs emulate it, slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return has_amx_tiles() or torch.cpu._is_avx512_bf16_supported()


@cache
def has_amx_tiles() -> bool:
    """Whether the CPU multiplies tiles of matrices (AMX; Intel's servers from Sapphire Rapids on)."""
    return torch.cpu._is_amx_tile_supported()
