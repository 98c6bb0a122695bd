"""How well words are placed in time, on real speech joined with known pauses.

    python -m tests.benchmarks.word_times --manifest test.jsonl [--checkpoint DIR]

Utterances are cut to where their sound begins and ends, and joined with pauses of known length. Where a
pause ends, the first word of the next utterance begins: its start is known to the sample. The recording
goes through the whole recognizer; a word counts if its text was recognized.
"""

import argparse
import random
from pathlib import Path

import torch
from torch import Tensor

from model.audio import SAMPLE_RATE, load_audio
from model.recognizer import Recognizer
from training.manifest import read_manifest
from training.spoken import words_of

JOINED = 6
PAUSES = (0.3, 1.0)
TOLERANCE = 0.12


def trim(waveform: Tensor, below_db: float = 20.0) -> Tensor:
    """Cut a clip to where its 20 ms RMS is within so many dB of its loudest.

    The rooms and breaths of LibriSpeech reach to 25 dB below the loudest vowel.
    """
    frames = waveform.unfold(0, 320, 80).square().mean(-1)
    loud = torch.nonzero(frames > frames.max() * 10 ** (-below_db / 10)).flatten()
    return waveform[int(loud[0]) * 80 : int(loud[-1]) * 80 + 320]


def main() -> None:
    """Print the share of first words within the tolerance, and the spread of the error."""
    parser = argparse.ArgumentParser(description="Errors of word starts on joined utterances.")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("model/shipped"))
    args = parser.parse_args()
    recognizer = Recognizer.load(args.checkpoint)
    drawn = random.Random(0)
    utterances, _ = read_manifest(args.manifest)
    utterances = [u for u in utterances if u.duration < 12]
    drawn.shuffle(utterances)
    errors: list[float] = []
    firsts = 0
    for first in range(0, len(utterances) - JOINED + 1, JOINED):
        parts: list[Tensor] = []
        truth: list[tuple[str, float]] = []
        length = 0
        for utterance in utterances[first : first + JOINED]:
            pause = torch.zeros(int(drawn.uniform(*PAUSES) * SAMPLE_RATE))
            speech = trim(load_audio(utterance.audio_filepath))
            truth.append(
                (next(iter(words_of(utterance.text)), ""), (length + len(pause)) / SAMPLE_RATE)
            )
            parts += [pause, speech]
            length += len(pause) + len(speech)
        (transcript,) = recognizer.transcribe([torch.cat(parts)]).transcripts
        for word, start in truth:
            firsts += 1
            near = [
                w.start - start
                for w in transcript.words
                if words_of(w.word)[:1] == [word] and abs(w.start - start) < 2
            ]
            if near:
                errors.append(min(near, key=abs))
    found = torch.tensor(errors)
    within = float((found.abs() <= TOLERANCE).float().mean())
    quantiles = found.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    print(f"{len(errors)} of {firsts} first words recognized; {within:.1%} within {TOLERANCE} s")
    print("error of their start (s), 5 / 50 / 95 %: " + " / ".join(f"{q:+.3f}" for q in quantiles))


if __name__ == "__main__":
    main()
