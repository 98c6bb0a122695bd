"""Start a network from Whisper's weights.

    python -m model.whisper WEIGHTS.safetensors TOKENIZER.json OUTPUT

`WEIGHTS` is any `openai/whisper-*` file under Hugging Face's names. The CTC head starts random.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.checkpoint import Checkpoint, CheckpointError, ModelConfig, save_checkpoint
from model.network import ModelDimensions
from model.tokenizer import DEFAULT_CHARACTERS, Characters

# Whisper's English models have 51,864 tokens; the multilingual ones at least one more.
ENGLISH_VOCABULARY = 51_864


def whisper_dimensions(
    state: dict[str, Tensor], ctc_layers: int, ctc_labels: int
) -> ModelDimensions:
    """Read the sizes off a Whisper state dict (without the prefix `model.`)."""

    def layers(side: str) -> int:
        return len({name.split(".")[2] for name in state if name.startswith(f"{side}.layers.")})

    width, n_mels, _ = state["encoder.conv1.weight"].shape
    return ModelDimensions(
        n_mels=n_mels,
        audio_positions=len(state["encoder.embed_positions.weight"]),
        audio_width=width,
        audio_layers=layers("encoder"),
        text_positions=len(state["decoder.embed_positions.weight"]),
        text_width=state["decoder.embed_tokens.weight"].shape[1],
        text_layers=layers("decoder"),
        vocabulary=len(state["decoder.embed_tokens.weight"]),
        ctc_layers=ctc_layers,
        ctc_labels=ctc_labels,
    )


def from_whisper(
    weights: Path,
    tokenizer: Path,
    *,
    ctc_layers: int = 1,
    characters: str = DEFAULT_CHARACTERS,
    language: str = "en",
) -> Checkpoint:
    """Build a network around Whisper's encoder and decoder, with a random CTC head.

    Args:
        weights: safetensors under Hugging Face's names, with or without the prefix `model.`.
        tokenizer: the `tokenizer.json` beside it.
        ctc_layers: Transformer layers of the CTC head.
        characters: labels of the CTC head.
        language: ISO 639-1 code.

    Raises:
        CheckpointError: the file is not one of Whisper's.
    """
    try:
        loaded = load_file(str(weights))
    except SafetensorError as error:
        raise CheckpointError(f"{weights} is not a whole safetensors file: {error}") from error
    state = {name.removeprefix("model."): tensor for name, tensor in loaded.items()}
    state.pop("proj_out.weight", None)  # tied to the token embedding
    try:
        dimensions = whisper_dimensions(state, ctc_layers, len(Characters(characters)))
    except KeyError as error:
        raise CheckpointError(f"{weights} is not a Whisper model: it has no {error}") from error
    except ValueError as error:  # shapes that no network has
        raise CheckpointError(f"{weights} is not a Whisper model: {error}") from error
    del state["encoder.embed_positions.weight"]  # sinusoids, computed
    config = ModelConfig(
        dimensions=dimensions,
        characters=characters,
        multilingual=dimensions.vocabulary > ENGLISH_VOCABULARY,
        language=language,
        provenance={"start": weights.name},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the head's random weights are the same each time
        checkpoint = Checkpoint.build(config, tokenizer)
    try:
        missing, unknown = checkpoint.network.load_state_dict(state, strict=False)
    except RuntimeError as error:  # other sizes than the first ones promise
        raise CheckpointError(f"{weights} is not a Whisper model: {error}") from error
    missing = [name for name in missing if not name.startswith("ctc.")]
    if missing or unknown:
        raise CheckpointError(
            f"{weights} is not a Whisper model: missing {missing[:3]}, unknown {unknown[:3]}"
        )
    checkpoint.network.eval()
    return checkpoint


def main() -> int:
    """Command line, see the module's text; the exit status is 1 if no checkpoint could be made."""
    parser = argparse.ArgumentParser(description="Start a checkpoint from Whisper's weights.")
    parser.add_argument("weights", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--ctc-layers", type=int, default=1)
    parser.add_argument("--language", default="en", help="ISO 639-1 code")
    parser.add_argument(
        "--characters",
        default=DEFAULT_CHARACTERS,
        help="labels of the CTC head: a space, and what words are made of, in lower case",
    )
    args = parser.parse_args()
    card = (
        f"# A start from {args.weights.name}\n\n"
        "Whisper's weights with an untrained CTC head: the start of a training, not for use.\n"
    )
    try:
        checkpoint = from_whisper(
            args.weights,
            args.tokenizer,
            ctc_layers=args.ctc_layers,
            characters=args.characters,
            language=args.language,
        )
        save_checkpoint(args.output, checkpoint, card)
    except (ValueError, OSError) as error:
        print(f"whisper: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {checkpoint.config.dimensions}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
