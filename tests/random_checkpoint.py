"""A checkpoint with random weights, small enough to make in a second."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from model.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from model.network import ModelDimensions
from model.tokenizer import DEFAULT_CHARACTERS, Characters

SPECIAL = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|notimestamps|>",
    "<|nospeech|>",
    "<|startofprev|>",
)
CARD = "# Random weights\n\nFor tests. It recognizes nothing.\n"
SHIPPED = Path(__file__).resolve().parent.parent / "model" / "shipped"


def make_random_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint of Whisper's shape with one layer and a byte vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    pairs.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer_file = folder.parent / f"{folder.name}-tokens.json"
    pairs.save(str(tokenizer_file))
    config = ModelConfig(
        ModelDimensions(
            n_mels=80,
            audio_positions=1500,
            audio_width=64,
            audio_layers=1,
            text_positions=448,
            text_width=64,
            text_layers=1,
            vocabulary=pairs.get_vocab_size(),
            ctc_layers=0,
            ctc_labels=len(Characters(DEFAULT_CHARACTERS)),
        )
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_checkpoint(folder, Checkpoint.build(config, tokenizer_file), CARD)
    tokenizer_file.unlink()
    return folder
