"""How many compiled kernels a worker keeps."""

import os

from model.precision import has_amx_tiles

# Where lengths do not come in steps (`model.network.KERNEL_STEP`) kernels hardly come again, and the
# libraries' own 1,024 cost up to a gigabyte. Fewer than 256 cost time as well (docs/experiments.md).
CACHED_KERNELS = 256
# Of oneDNN, and of torch's layer above it.
CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def bound_kernel_caches() -> None:
    """Keep a worker's memory from growing with every new length of audio and text.

    oneDNN, and torch's layer above it, keep what they made for each shape of a product. With AMX there
    are some 600 shapes, all of which come again, and nothing is bound; other CPUs see new ones for
    ever. To be called before the first product of the process. What the environment says already stays.
    """
    if has_amx_tiles():
        return
    for name in CAPACITIES:
        os.environ.setdefault(name, str(CACHED_KERNELS))
