"""Words are placed where they were said."""

import json
import random
from pathlib import Path

import pytest
import torch

from model.alignment import align_words
from model.audio import SAMPLE_RATE, load_audio

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.slow
@torch.inference_mode()
def test_words_joined_with_known_pauses_start_within_a_tenth_of_a_second(shipped_recognizer):
    """Single words with pauses between them: where each begins is known to the sample."""
    audio = load_audio(FIXTURES / "words.flac")
    words = json.loads((FIXTURES / "words.json").read_text())
    drawn = random.Random(0)
    errors: list[float] = []
    for _ in range(6):
        chosen = drawn.sample(words, 10)
        parts, starts, length = [], [], 0
        for entry in chosen:
            pause = torch.zeros(int(drawn.uniform(0.15, 0.8) * SAMPLE_RATE))
            starts.append((length + len(pause)) / SAMPLE_RATE)
            parts += [pause, audio[entry["start"] : entry["end"]]]
            length += len(pause) + entry["end"] - entry["start"]
        waveform = torch.cat(parts)
        features, frames = shipped_recognizer.features(
            waveform[None], torch.tensor([len(waveform)])
        )
        network = shipped_recognizer.network
        heard = network.ctc(network.encoder(features, frames), frames)[0]
        text = " ".join(entry["word"] for entry in chosen)
        aligned = align_words(heard, text, shipped_recognizer.characters)
        errors += [w.start - start for w, start in zip(aligned, starts, strict=True)]
    within = sum(abs(e) <= 0.12 for e in errors) / len(errors)
    middle = sorted(errors)[len(errors) // 2]
    print(f"{within:.1%} of {len(errors)} words within 0.12 s, median {middle:+.3f} s")
    assert within >= 0.95
