"""Word error rates on dev while a training runs."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from jiwer import wer
from torch.nn.utils.rnn import pad_sequence
from whisper_normalizer.english import EnglishTextNormalizer

from model.checkpoint import Checkpoint
from model.search import greedy_ctc, greedy_search
from training.data import load_utterance
from training.manifest import Utterance

BATCH = 16


@torch.no_grad()
def validate(
    checkpoint: Checkpoint,
    utterances: Sequence[Utterance],
    precision: AbstractContextManager[object],
    pause: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """WER (0 to 1) of greedy search and of the CTC head, and the share of looped texts.

    They are `wer_accurate` and `wer_fast`, though mode `fast` has the CTC head's text corrected: what is
    taught is judged, without n-gram and decoder.

    Args:
        pause: called before each batch; what it raises ends the judging.
    """
    network = checkpoint.network
    device = next(network.parameters()).device
    normalize = EnglishTextNormalizer()
    references, accurate, fast, looped = [], [], [], 0
    ordered = sorted(utterances, key=lambda u: u.duration)
    for first in range(0, len(ordered), BATCH):
        pause()
        chunk = ordered[first : first + BATCH]
        waveforms = [load_utterance(u).to(device) for u in chunk]
        samples = torch.tensor([len(w) for w in waveforms], device=device)
        with precision:
            features, frames = checkpoint.features(
                pad_sequence(waveforms, batch_first=True), samples
            )
            encoded = network.encoder(features, frames)
            found = greedy_search(network.decoder, encoded, frames, checkpoint.tokenizer)
            fast += greedy_ctc(network.ctc(encoded, frames), frames, checkpoint.characters)
        accurate += [checkpoint.tokenizer.decode(d.tokens) for d in found]
        looped += sum(d.looped for d in found)
        references += [normalize(u.text) for u in chunk]
    return {
        "wer_accurate": float(wer(references, [normalize(t) for t in accurate])),
        "wer_fast": float(wer(references, [normalize(t) for t in fast])),
        "looped": looped / len(ordered),
    }
