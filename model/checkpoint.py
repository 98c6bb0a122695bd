"""Checkpoints: a folder with the weights and everything needed to rebuild the network around them.

    model.safetensors   the weights, float16; or int8 with a scale for each row, see `model.int8`
    config.json         sizes, features, characters, language, where it came from
    tokenizer.json      Whisper's tokens
    MODEL_CARD.md       what it is, how it was made, how good it is
    language_model.arpa.xz   perhaps: an n-gram for mode `fast`, see `model.language_model`

Nothing in it is executed when it is read.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.confidence import Calibration, Calibrations
from model.features import LogMel
from model.int8 import Int8Weight
from model.network import ModelDimensions, Network
from model.tokenizer import DEFAULT_CHARACTERS, Characters, Tokenizer

FORMAT = 1
WEIGHTS, CONFIG, TOKENIZER, CARD = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "MODEL_CARD.md",
)
LANGUAGE_MODEL = "language_model.arpa.xz"
# The scales of an int8 weight stand under its name with this at the end.
SCALES = ".scales"


class CheckpointError(ValueError):
    """A folder is not a checkpoint, or a damaged or foreign one."""


@dataclass(frozen=True)
class ModelConfig:
    """What `config.json` holds.

    Attributes:
        dimensions: sizes of the network.
        tail_seconds: zeros after each clip, see `model.features.LogMel`.
        characters: of the CTC head, see `model.tokenizer.Characters`.
        multilingual: whether the decoder is told the language.
        language: ISO 639-1 code of the text.
        calibration: of word confidences; older files have none.
        provenance: where the weights came from, for a person to read.
    """

    dimensions: ModelDimensions
    tail_seconds: float = 0.5
    characters: str = DEFAULT_CHARACTERS
    multilingual: bool = False
    language: str = "en"
    calibration: Calibrations = field(default_factory=Calibrations)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        labels = len(Characters(self.characters))
        if labels != self.dimensions.ctc_labels:
            raise ValueError(
                f"ctc_labels is {self.dimensions.ctc_labels}, "
                f"but the characters and the blank make {labels}"
            )

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Parse `config.json`.

        Raises:
            ValueError: it is not JSON, a key is missing or unknown, or a value is out of range.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ValueError(f'it must be an object with "format": {FORMAT}')
        try:
            dimensions = ModelDimensions(**values.pop("dimensions", {}))
            calibration = Calibrations(
                **{
                    mode: None if fitted is None else Calibration(**fitted)
                    for mode, fitted in values.pop("calibration", {}).items()
                }
            )
            return cls(dimensions=dimensions, calibration=calibration, **values)
        except (TypeError, AttributeError) as error:  # a key too many or too few, no object
            raise ValueError(str(error)) from error

    def to_json(self) -> str:
        """The text of `config.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"


@dataclass
class Checkpoint:
    """A network with all that turns audio and text into its numbers and back.

    `language_model` is the file of its n-gram, if it has one.
    """

    config: ModelConfig
    network: Network
    tokenizer: Tokenizer
    features: LogMel
    characters: Characters
    language_model: Path | None = None

    @classmethod
    def build(cls, config: ModelConfig, tokenizer_file: Path) -> "Checkpoint":
        """A new one with random weights."""
        return cls(
            config=config,
            network=Network(config.dimensions),
            tokenizer=Tokenizer.from_file(
                tokenizer_file,
                config.dimensions.vocabulary,
                config.multilingual,
                config.language,
            ),
            features=LogMel(config.dimensions.n_mels, config.tail_seconds),
            characters=Characters(config.characters),
        )


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    card: str,
    *,
    weights: dict[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float16,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint; the folder appears whole or not at all, and replaces an older one.

    Args:
        folder: where.
        checkpoint: what.
        card: the text of its model card, Markdown.
        weights: instead of the network's own, for example their running average.
        dtype: of the weights in the file. float16 keeps three digits; every weight must lie
            within its range. int8 halves the matrices once more; the vectors stay in float16.
        provenance: replaces the one in the checkpoint's configuration. It tells of other weights, so
            the calibration, which was fitted to the old ones, is left out.

    Raises:
        CheckpointError: a weight is not finite, or becomes so in `dtype`.
    """
    tensors = {}
    for name, tensor in (weights or checkpoint.network.state_dict()).items():
        stored = tensor.detach().to("cpu", torch.float16 if dtype == torch.int8 else dtype)
        if not bool(stored.isfinite().all()):
            raise CheckpointError(f"{name} has values that are not finite in {stored.dtype}")
        if dtype == torch.int8 and tensor.ndim > 1 and "embed_positions" not in name:
            weight = Int8Weight.of(tensor.cpu())
            tensors[name + SCALES] = weight.scales
            stored = weight.values
        tensors[name] = stored.contiguous()
    config = checkpoint.config
    if provenance is not None:
        config = replace(config, provenance=provenance, calibration=Calibrations())
    folder = Path(folder)
    part, old = (folder.with_name(folder.name + suffix) for suffix in (".part", ".old"))
    if old.exists() and not folder.exists():  # killed between the two renames below
        old.rename(folder)
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(tensors, part / WEIGHTS, metadata={"format": "pt"})
    (part / WEIGHTS).chmod(0o644)  # the library makes it private; a server runs as another user
    (part / CONFIG).write_text(config.to_json(), encoding="utf-8")
    checkpoint.tokenizer.pairs.save(str(part / TOKENIZER), pretty=False)
    (part / CARD).write_text(card, encoding="utf-8")
    if checkpoint.language_model is not None:
        shutil.copyfile(checkpoint.language_model, part / LANGUAGE_MODEL)
    for path in [*part.iterdir(), part]:  # the bytes reach the disk before the name does
        _sync(path)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint; the network comes in float32 and ready to evaluate.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind; the message names it.
    """
    folder = Path(folder)
    for name in (CONFIG, TOKENIZER, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; a checkpoint folder holds one")
    try:
        config = ModelConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}") from error
    try:
        checkpoint = Checkpoint.build(config, folder / TOKENIZER)
    except (ValueError, TypeError) as error:  # a value of the wrong kind
        raise CheckpointError(str(error)) from error
    load_weights(checkpoint.network, folder / WEIGHTS)
    if (folder / LANGUAGE_MODEL).is_file():
        checkpoint.language_model = folder / LANGUAGE_MODEL
    checkpoint.network.eval()
    return checkpoint


def load_weights(network: Network, path: Path) -> None:
    """Fill a network from a safetensors file that has exactly its parameters.

    Raises:
        CheckpointError: the file is damaged, or its names, shapes or values do not fit.
    """
    own = network.state_dict()
    try:
        with safe_open(str(path), framework="pt") as file:
            stored = set(file.keys())
            scaled = {name for name in stored if name + SCALES in stored}
            names = stored - {name + SCALES for name in scaled}
            if names != set(own):
                missing, unknown = sorted(set(own) - names), sorted(names - set(own))
                raise CheckpointError(
                    f"{path} is not of this network: "
                    f"missing {missing[:3] or 'nothing'}, unknown {unknown[:3] or 'nothing'}"
                )
            for name, parameter in own.items():
                tensor = file.get_tensor(name)
                if name in scaled:
                    tensor = _dense(tensor, file.get_tensor(name + SCALES), f"{path}: {name}")
                if tensor.shape != parameter.shape:
                    raise CheckpointError(
                        f"{path}: {name} has shape {tuple(tensor.shape)}, "
                        f"the network's is {tuple(parameter.shape)}"
                    )
                if not bool(tensor.isfinite().all()):
                    raise CheckpointError(f"{path}: {name} has values that are not finite")
                parameter.copy_(tensor)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def _dense(values: Tensor, scales: Tensor, name: str) -> Tensor:
    if values.dtype != torch.int8 or scales.shape != values.shape[:1]:
        raise CheckpointError(
            f"{name} is {values.dtype} {tuple(values.shape)} with scales {tuple(scales.shape)}; "
            "it must be int8 with one scale for each row"
        )
    return Int8Weight(values, scales).dense
