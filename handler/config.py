"""The `handler:` section of model-config.yaml, and what else the handler reads from that file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from model.audio import AudioLimits


class HandlerConfig(BaseModel):
    """How the handler recognizes speech; unknown keys and impossible values are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = "checkpoint"
    """The checkpoint's folder inside the archive."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU that TorchServe gives to this worker, the CPU where there is none."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Of matrix products; auto: the fastest that the device has units for (`model.precision`)."""
    max_batch_seconds: float = Field(default=240.0, ge=20)
    """Padded seconds of audio in one forward pass, of which a CPU has two at once; at least those of a
    piece (`model.recognizer.PIECE_SECONDS`)."""
    max_audio_seconds: PositiveFloat = 3600.0
    """A longer recording is refused with 413."""
    max_audio_bytes: PositiveInt = 40 * 2**20
    """A larger file is refused with 413."""
    cpu_threads: PositiveInt | None = None
    """Threads of this worker; by default all of the pod's CPUs while no other worker is at work, else
    those divided by the workers."""
    model_names: tuple[str, ...] = Field(
        default=("asr", "steno", "whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe"),
        min_length=1,
    )
    """Values of `model` that callers may send; OpenAI's clients cannot leave it out, and many have one
    built in."""
    warmup_seconds: tuple[PositiveFloat, ...] = (1.0, 10.0)
    """Lengths of the clips that warm the worker up before it reports READY."""
    token_file: Path | None = None
    """Bearer tokens that callers must show, one a line; not set: TorchServe's own tokens guard."""

    @property
    def audio_limits(self) -> AudioLimits:
        """The limits in the form that the decoder of files takes."""
        return AudioLimits(max_bytes=self.max_audio_bytes, max_seconds=self.max_audio_seconds)


def read_handler_config(model_config: Mapping[str, Any] | None) -> HandlerConfig:
    """Check the `handler:` section of a parsed model-config.yaml; a missing one means defaults.

    Raises:
        pydantic.ValidationError: naming each unknown key and each impossible value.
    """
    return HandlerConfig.model_validate((model_config or {}).get("handler") or {})


def workers_of(model_config: Mapping[str, Any] | None) -> int:
    """Return how many workers share this machine's CPUs, as model-config.yaml says."""
    return max(1, int((model_config or {}).get("maxWorkers") or 1))
