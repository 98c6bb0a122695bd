"""What `accuracy` compares: the systems, their settings, and what a loaded one is.

The standard library and numpy alone, because the peers' Python has nothing of ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
Clips = Sequence[NDArray[np.float32]]  # (samples,) each, 16 kHz mono


@dataclass(frozen=True)
class Loaded:
    """A system that is ready.

    Attributes:
        transcribe: the texts of clips, in their order; it may join the clips into batches.
        model_bytes: of all files that the model needs, as they are distributed.
        packages: whose versions bear on text and speed.
    """

    transcribe: Callable[[Clips], list[str]]
    model_bytes: int
    packages: tuple[str, ...]


@dataclass(frozen=True)
class System:
    """A recognizer with its settings.

    Attributes:
        family: one line of a plot.
        batched: whether it gets many clips at once; else one by one.
        options: the loader's, besides `batched`.
        most_threads: what it can make use of.
    """

    family: str
    setting: str
    batched: bool
    loader: Literal["steno", "faster_whisper", "pocketsphinx"]
    options: dict[str, Any]
    most_threads: int = 64

    @property
    def name(self) -> str:
        """Unique among the systems."""
        return f"{self.family} {self.setting}{' batched' if self.batched else ''}".strip()


def all_systems(checkpoint: str, precisions: Sequence[str]) -> list[System]:
    """Steno's modes in each of the precisions, then the peers."""
    ways = (False, True)
    steno = [
        System(
            family=f"Steno {mode}",
            setting=f"{dtype}, beam {beam_size}" if beam_size else dtype,
            batched=batched,
            loader="steno",
            options={
                "checkpoint": checkpoint,
                "mode": mode,
                "dtype": dtype,
                "beam_size": beam_size,
            },
        )
        for mode, beam_size in (("accurate", None), ("accurate", 1), ("fast", None))
        for dtype in precisions
        for batched in ways
    ]
    whisper = [
        System(
            family=f"Whisper {weights}",
            setting=f"{compute_type}, beam {beam_size}",
            batched=batched,
            loader="faster_whisper",
            options={"weights": weights, "compute_type": compute_type, "beam_size": beam_size},
        )
        for weights in ("tiny.en", "base")
        for compute_type, beam_size, batched in (
            ("float32", 5, False),  # its usual settings on a CPU
            *(("int8", beam_size, batched) for beam_size in (5, 1) for batched in ways),
        )
    ]
    sphinx = System(
        family="PocketSphinx",
        setting="",
        batched=False,
        loader="pocketsphinx",
        options={},
        most_threads=1,
    )
    return [*steno, *whisper, sphinx]
