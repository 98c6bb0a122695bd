"""Which numbers a device computes fast with."""

import torch


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices faster than float32 ones.

    NVIDIA GPUs do from Ampere on, CPUs with AMX tiles or with AVX-512's dot products (AMD from Zen 4
    on). Older GPUs (T4, V100) and CPUs emulate it, slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
