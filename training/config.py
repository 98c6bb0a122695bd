"""What a training run is told, checked before it starts."""

from pathlib import Path
from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Losses(_Config):
    """Weights of the parts of the loss; a part of weight 0 is not computed."""

    attention: NonNegativeFloat = 1.0
    """Cross-entropy of the decoder's tokens against the written text."""
    ctc: NonNegativeFloat = 0.3
    """CTC of the characters of the spoken text, for each character."""
    distillation: NonNegativeFloat = 0.0
    """Kullback-Leibler divergence of the decoder's tokens from the teacher's."""
    matching: NonNegativeFloat = 0.0
    """Squared error of the encoder's frames against the teacher's, over their variance."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not (self.attention or self.ctc or self.distillation or self.matching):
            raise ValueError("all weights are 0: nothing would be learnt")
        return self


class Batches(_Config):
    """How utterances are put together."""

    padded_seconds: PositiveFloat = 60.0
    """Most audio in a batch of one process, padding included."""
    longest_seconds: PositiveFloat = 29.0
    """Most audio of an utterance. Only those of `augmentation.speeds` are drawn at which it fits; if
    there is none, it is left out and counted. The network's own limit is 30 s less the tail."""
    accumulate: PositiveInt = 1
    """Batches for one step of the optimizer."""
    workers: int = Field(default=1, ge=0)
    """Processes that decode and augment audio."""


class Augmentation(_Config):
    """What is done to the audio of training; the teacher hears it without noise and masks."""

    speeds: tuple[PositiveFloat, ...] = Field(default=(0.9, 1.0, 1.1), min_length=1)
    """One is drawn for each utterance (Ko et al., 2015)."""
    noise_probability: float = Field(default=0.3, ge=0, le=1)
    """Share of utterances with noise: of a random colour, or a babble of other utterances."""
    noise_db: tuple[float, float] = (5.0, 30.0)
    """Lowest and highest ratio of speech to noise."""
    silence_probability: float = Field(default=0.02, ge=0, le=1)
    """Share of utterances replaced by noise alone, whose text is empty."""
    time_masks: int = Field(default=2, ge=0)
    """SpecAugment (Park et al., 2019)."""
    time_mask_seconds: NonNegativeFloat = 0.5
    frequency_masks: int = Field(default=2, ge=0)
    frequency_mask_bands: int = Field(default=20, ge=0)


class Optimizer(_Config):
    """AdamW, with a linear warm-up and a cosine decay."""

    learning_rate: PositiveFloat = 3e-5
    scales: dict[str, NonNegativeFloat] = {"ctc.": 20.0}
    """Factors of the learning rate by the beginning of a parameter's name; the longest that fits
    counts. 0 freezes."""
    warmup_steps: int = Field(default=100, ge=0)
    final_share: float = Field(default=0.02, ge=0, le=1)
    """Learning rate at the end, as a share of the highest."""
    weight_decay: NonNegativeFloat = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: PositiveFloat = 1.0
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Of the running average of the weights, which is what is evaluated and kept."""


class TrainConfig(_Config):
    """One training run."""

    train: list[Path] = Field(min_length=1)
    """Manifests to learn from."""
    dev: Path
    """Manifest to choose the best weights with; never one that figures are reported on."""
    init: Path
    """Checkpoint folder to start from, see `python -m model.whisper`."""
    output: Path
    """Folder of the run: log, state, best and last checkpoint."""
    teacher: Path | None = None
    """Checkpoint folder of a network that hears the clean audio."""
    teacher_padded: bool = True
    """The teacher hears audio padded to 30 s, as Whisper's own weights do; else at its own length."""
    epochs: PositiveInt = 5
    losses: Losses = Losses()
    batches: Batches = Batches()
    augmentation: Augmentation = Augmentation()
    optimizer: Optimizer = Optimizer()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward pass; auto is bfloat16 where the device has matrix units for it. The CTC loss
    and the weights stay in float32."""
    select: Literal["accurate", "fast", "mean"] = "mean"
    """Mode whose WER on dev chooses the best checkpoint, or the mean of both."""
    save_every: PositiveInt = 200
    """Steps between saved states; one is saved after each epoch as well."""
    seed: int = Field(default=1, ge=0)
    resume: bool = False
    """Go on from the state in `output`; without one, start afresh."""
    push_gateway: str | None = None
    """Prometheus push gateway, as http://host:9091."""
