"""Turn lines of text into synthetic speech with a manifest, so that training hears words it lacks.

    python -m training.synthesize --text words.txt --output runs/synthetic --voices package/voices

The output folder gets `clips/` (16 kHz FLAC), `manifest.jsonl`, and `refused.jsonl`: every line that
cannot be said, with its reason. A line's voice, speed and loudness are drawn from the seed and the line
itself, and a clip's name is made of them. So the same command goes on where it stopped, and lines that
are added later change no other clip. A line that stands there twice is said in two ways.
"""

import argparse
import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample
from tqdm import tqdm

from model.audio import SAMPLE_RATE
from training.files import atomic_writer, write_text
from training.manifest import Rejected, Utterance, write_manifest
from training.spoken import UnspeakableError, read_plain_text, spoken_text
from training.voices import SAMPLE_RATE as SPOKEN_RATE
from training.voices import Synthesizer, Voice, packaged_voices, read_voices

SPEEDS = (0.9, 1.0, 1.1, 1.2)
PEAKS = (0.1, 0.7)  # loudest sample of a clip, of 1
_AUDIBLE = 0.02  # of the loudest sample; what is softer before and after the words is cut off
_BEFORE, _AFTER = 0.1, 0.15  # seconds that are left of it


@dataclass(frozen=True)
class Clip:
    """What is said, by whom and how, and where it is kept."""

    line: int  # in the text file, from 1
    written: str
    text: str
    voice: Voice
    speed: float
    peak: float
    path: Path


def plan(
    source: Path, voices: Sequence[Voice], speeds: Sequence[float], seed: int, folder: Path
) -> tuple[list[Clip], list[Rejected]]:
    """Decide for each line of a text file how it is said; empty lines are skipped.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8.
    """
    clips: list[Clip] = []
    refused: list[Rejected] = []
    seen: Counter[str] = Counter()
    for number, line in enumerate(read_plain_text(source).split("\n"), start=1):
        written = " ".join(line.split())
        if not written:
            continue
        try:
            text = spoken_text(written)
        except UnspeakableError as reason:
            refused.append(Rejected(source, number, str(reason), written))
            continue
        draw = random.Random(f"{seed} {seen[written]} {written}")
        seen[written] += 1
        voice, speed, peak = draw.choice(voices), draw.choice(speeds), draw.uniform(*PEAKS)
        identity = json.dumps([written, voice.name, speed, peak]).encode()
        name = f"{voice.name}-{hashlib.sha256(identity).hexdigest()[:16]}.flac"
        clips.append(Clip(number, written, text, voice, speed, peak, folder / name))
    return clips, refused


def finish(speech: NDArray[np.float32], peak: float) -> NDArray[np.float32]:
    """Cut silence off the ends of speech at Kokoro's rate, and bring it to 16 kHz and to `peak`.

    Returns float32 (samples,). Raises UnspeakableError if there is nothing to hear.
    """
    level = np.abs(speech)
    heard = np.flatnonzero(level > _AUDIBLE * level.max(initial=0.0))
    if not len(heard):
        raise UnspeakableError("gives silence")
    start = max(0, heard[0] - int(_BEFORE * SPOKEN_RATE))
    speech = speech[start : heard[-1] + int(_AFTER * SPOKEN_RATE)]
    samples = resample(torch.from_numpy(speech), SPOKEN_RATE, SAMPLE_RATE)
    return (samples * (peak / samples.abs().max())).numpy()


def make(clip: Clip, synthesizer: Synthesizer) -> UnspeakableError | None:
    """Say a clip and keep it; an error is the answer, so that the other clips go on."""
    try:
        speech = finish(synthesizer.speak(clip.written, clip.voice, clip.speed), clip.peak)
    except UnspeakableError as error:
        return error
    with atomic_writer(clip.path) as file:
        soundfile.write(file, speech, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return None


def make_all(clips: Sequence[Clip], workers: int) -> Iterator[tuple[Clip, UnspeakableError | None]]:
    """Make clips in threads, in order; the synthesizer computes without Python's lock.

    When it is stopped early, the clips that have begun are finished.
    """
    synthesizer = Synthesizer()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from zip(clips, pool.map(lambda clip: make(clip, synthesizer), clips), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _write_lists(output: Path, clips: Sequence[Clip], refused: Sequence[Rejected]) -> float:
    """Write the manifest of the clips that are there, and the refused lines; returns the seconds."""
    utterances = [
        Utterance(
            c.path, soundfile.info(c.path).duration, c.text, c.voice.name, "synthetic", c.written
        )
        for c in clips
        if c.path.exists()
    ]
    write_manifest(output / "manifest.jsonl", utterances)
    entries = [
        {"line": r.line, "reason": r.reason, "content": r.content}
        for r in sorted(refused, key=lambda r: r.line)
    ]
    write_text(
        output / "refused.jsonl",
        "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries),
    )
    return sum(u.duration for u in utterances)


def synthesize(
    source: Path,
    output: Path,
    voices: Sequence[Voice],
    *,
    speeds: Sequence[float] = SPEEDS,
    seed: int = 1,
    workers: int = 1,
) -> float:
    """Say every line of a text file that is not said yet, see the module's text.

    Returns:
        Seconds of speech in the manifest.

    Raises:
        OSError: the text cannot be read or the output not written.
        ValueError: the text is not UTF-8, or none of its lines can be said.
    """
    clips, refused = plan(source, voices, speeds, seed, output / "clips")
    (output / "clips").mkdir(parents=True, exist_ok=True)
    for line in refused:
        print(f"{source}:{line.line}: left out: {line.reason}", file=sys.stderr)
    missing = [clip for clip in clips if not clip.path.exists()]
    try:
        done = len(clips) - len(missing)
        with tqdm(total=len(clips), initial=done, unit="clip", disable=None) as bar:
            for clip, error in make_all(missing, workers) if missing else ():
                if error:
                    bar.write(f"{source}:{clip.line}: left out: {error}", file=sys.stderr)
                    refused.append(Rejected(source, clip.line, str(error), clip.written))
                bar.update()
    finally:
        seconds = _write_lists(output, clips, refused)
    if not seconds:
        raise ValueError(f"{source} has no line that can be said ({len(refused)} left out)")
    print(f"{output / 'manifest.jsonl'}: {seconds / 3600:.2f} h, {len(refused)} lines left out")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.synthesize", description="Turn lines of text into speech."
    )
    parser.add_argument("--text", type=Path, required=True, help="UTF-8, one clip a line")
    parser.add_argument("--output", type=Path, required=True, help="folder; new, or to go on with")
    parser.add_argument(
        "--voices",
        type=Path,
        help="folder of Kokoro's *.bin (docs/synthesis.md); without it, five voices with an accent",
    )
    parser.add_argument("--speeds", type=float, nargs="+", default=SPEEDS, help="1 is normal")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="clips at once, a core each")
    args = parser.parse_args(arguments)
    if args.workers < 1:
        parser.error(f"--workers is {args.workers}; at least 1 is needed")
    if not all(0.5 <= speed <= 2 for speed in args.speeds):
        parser.error(f"--speeds are {args.speeds}; Kokoro speaks clearly from 0.5 to 2")
    try:
        voices = packaged_voices() if args.voices is None else read_voices(args.voices)
        synthesize(
            args.text,
            args.output,
            voices,
            speeds=args.speeds,
            seed=args.seed,
            workers=args.workers,
        )
    except KeyboardInterrupt:
        print("synthesize: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"synthesize: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
