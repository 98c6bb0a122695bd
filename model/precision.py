"""Which numbers a device computes fast with."""

import torch


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether a device has matrix units for bfloat16: NVIDIA GPUs from Ampere on, CPUs with AMX.

    Older GPUs (T4, V100) and CPUs emulate it, slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()
