"""Whisper's own way: each clip padded to 30 s. For its own weights, which know no other length."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model.audio import SAMPLE_RATE
from model.checkpoint import Checkpoint
from model.search import greedy_search

SECONDS = 30
# Clips decoded at once: 8 minutes of padded audio.
_BATCH = 16


@torch.inference_mode()
def transcribe_padded(checkpoint: Checkpoint, waveforms: Sequence[Tensor]) -> list[str]:
    """Transcribe clips of at most 30 s by greedy search, without any guard against loops.

    Args:
        checkpoint: on any device, in any precision.
        waveforms: float32 (samples,) each, 16 kHz mono. What lies beyond 30 s is not heard.
    """
    device = next(checkpoint.network.parameters()).device
    positions = checkpoint.config.dimensions.audio_positions
    texts = []
    for first in range(0, len(waveforms), _BATCH):
        chunk = [w[: SECONDS * SAMPLE_RATE].to(device) for w in waveforms[first : first + _BATCH]]
        features = checkpoint.features.to(device).whisper(pad_sequence(chunk, batch_first=True))
        frames = torch.full((len(chunk),), positions, device=device)
        encoded = checkpoint.network.encoder(features, frames)
        found = greedy_search(checkpoint.network.decoder, encoded, frames, checkpoint.tokenizer)
        texts += [checkpoint.tokenizer.decode(decoded.tokens) for decoded in found]
    return texts
