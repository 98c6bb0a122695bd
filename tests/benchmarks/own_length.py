"""What a clip costs at its own length, against the same clip padded to 30 s as Whisper does.

    python -m tests.benchmarks.own_length [--checkpoint DIR] [--seconds 5] [--clips 1 8]

Features, encoder and decoder, for one clip and for several in a batch, alternating in one run. The
decoder writes the same number of tokens both times, so that the ratio compares work and not texts.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from model.audio import SAMPLE_RATE, load_audio
from model.checkpoint import Checkpoint, load_checkpoint

CLIP = Path(__file__).parents[1] / "fixtures" / "news.flac"
REPEATS = 15
# Read speech has about 3 tokens a second.
TOKENS_PER_SECOND = 3


@torch.inference_mode()
def spend(
    checkpoint: Checkpoint, waveforms: torch.Tensor, padded: bool, tokens: int
) -> list[float]:
    """Seconds of features and encoder, and of the decoder, for waveforms (clips, samples)."""
    network = checkpoint.network
    clips, samples = waveforms.shape
    dtype = network.encoder.conv1.weight.dtype
    started = time.perf_counter()
    if padded:
        features = checkpoint.features.whisper(waveforms)
        frames = torch.tensor([checkpoint.config.dimensions.audio_positions] * clips)
    else:
        features, frames = checkpoint.features(waveforms, torch.tensor([samples] * clips))
    encoded = network.encoder(features.to(dtype), frames)
    heard = time.perf_counter()
    decoder = network.decoder
    cache = decoder.start(encoded, frames, remember=True)
    hidden = decoder(torch.tensor([checkpoint.tokenizer.prompt] * clips), cache)
    for _ in range(tokens):
        written = decoder.scores(hidden[:, -1]).argmax(-1)
        hidden = decoder(written[:, None], cache)
    return [heard - started, time.perf_counter() - heard]


def compare(checkpoint: Checkpoint, waveforms: torch.Tensor, tokens: int) -> None:
    """Print the medians of both ways, and their ratio."""
    times: dict[bool, list[list[float]]] = {False: [], True: []}
    for i in range(REPEATS + 2):
        for padded in times:
            spent = spend(checkpoint, waveforms, padded, tokens)
            if i >= 2:  # the first two warm up
                times[padded].append(spent)
    medians = {
        padded: [statistics.median(column) for column in zip(*rows, strict=True)]
        for padded, rows in times.items()
    }
    for name, padded in (("own length", False), ("padded to 30 s", True)):
        encoder, decoder = (1000 * x for x in medians[padded])
        print(f"  {name:15} encoder {encoder:6.1f} ms, decoder ({tokens} tokens) {decoder:6.1f} ms")
    print(f"  ratio own/padded {sum(medians[False]) / sum(medians[True]):.3f}")


def main() -> None:
    """Compare in both precisions."""
    parser = argparse.ArgumentParser(description="Own length against 30 s of padding.")
    parser.add_argument("--checkpoint", type=Path, default=Path("model/shipped"))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clips", type=int, nargs="+", default=[1, 8], help="in a batch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = load_checkpoint(args.checkpoint)
    clip = load_audio(CLIP)
    waveform = clip.repeat(-(-int(args.seconds * SAMPLE_RATE) // len(clip)))
    waveform = waveform[: int(args.seconds * SAMPLE_RATE)]
    tokens = round(args.seconds * TOKENS_PER_SECOND)
    for dtype in (torch.float32, torch.bfloat16):
        checkpoint.network.to(dtype)
        for clips in args.clips:
            name = str(dtype).removeprefix("torch.")
            print(f"{name}, {args.threads} threads, {clips} x {args.seconds} s:")
            compare(checkpoint, waveform.repeat(clips, 1), tokens)


if __name__ == "__main__":
    main()
