"""How many compiled kernels a worker keeps."""

import os

# As fast as 1,024 where lengths are new; 64 take a tenth more time and 0.2 to 0.5 GB less
# (docs/experiments.md).
CACHED_KERNELS = 256
# Of oneDNN, and of torch's layer above it.
CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def bound_kernel_caches() -> None:
    """Keep a worker's memory from growing with every new length of audio and text.

    oneDNN, and torch's layer above it, keep what they made for each shape of a product, 1,024 each:
    here that is a gigabyte, which does not pay, since most shapes hardly come again. To be called
    before the first product of the process. What the environment says already stays.
    """
    for name in CAPACITIES:
        os.environ.setdefault(name, str(CACHED_KERNELS))
