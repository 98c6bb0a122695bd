"""Words that are heard where nobody speaks; there should be none.

    python -m tests.benchmarks.non_speech [--checkpoint DIR]

More than ten minutes of noise, hum, music and signals, made here: clips of 2 to 30 s, and the same
joined to one long file.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.audio import SAMPLE_RATE
from model.recognizer import Mode, Recognizer, TranscribeOptions
from tests.benchmarks.conditions import coloured_noise, level
from training.documents import fill
from training.files import write_text
from training.machine import Machine

Samples = NDArray[np.float64]
# (samples, generator) -> sound of any loudness
Sound = Callable[[int, np.random.Generator], Samples]

SECONDS = (2.0, 30.0)  # shortest and longest clip; the others lie evenly between
LEVELS_DB = (
    -20,
    -35,
    -50,
)  # RMS below full scale: a loud recording, a soft one, a bad line's noise
LONG = "all, joined"


def _time(samples: int) -> Samples:
    return np.arange(samples) / SAMPLE_RATE


def _noise(samples: int, exponent: float, rng: np.random.Generator) -> Samples:
    return coloured_noise(samples, exponent, rng).double().numpy()


def _placed(samples: int, events: Sequence[tuple[float, Samples]]) -> Samples:
    """Sounds added where they begin, in seconds; what reaches beyond the end is cut."""
    sound = np.zeros(samples)
    for start, event in events:
        first = round(start * SAMPLE_RATE)
        length = min(len(event), samples - first)
        if length > 0:
            sound[first : first + length] += event[:length]
    return sound


def _moments(seconds: float, apart: tuple[float, float], rng: np.random.Generator) -> list[float]:
    """Moments so far apart, from 0 to `seconds`."""
    moments = [0.0]
    while moments[-1] < seconds:
        moments.append(moments[-1] + rng.uniform(*apart))
    return moments


def _hum(samples: int, mains: float, rng: np.random.Generator) -> Samples:
    """Mains and its harmonics, the even ones stronger, as of a transformer; and a little noise."""
    time = _time(samples)
    sound = 0.02 * _noise(samples, 1.0, rng)
    for harmonic in range(1, 21):
        strength = (2.0 if harmonic % 2 == 0 else 1.0) / harmonic * rng.uniform(0.3, 1.0)
        sound += strength * np.sin(2 * np.pi * (mains * harmonic * time + rng.random()))
    return sound


def _note(pitch: float, seconds: float, decay: float, vibrato: float = 0.0) -> Samples:
    """Eight harmonics that begin at once and die away, the higher ones sooner; pitch in Hz."""
    time = _time(round(seconds * SAMPLE_RATE))
    phase = 2 * np.pi * pitch * time + vibrato * np.sin(2 * np.pi * 5.5 * time)
    edges = np.minimum(np.minimum(time, seconds - time) / 0.01, 1.0)
    partials = (np.sin(n * phase) / n * np.exp(-decay * n**0.5 * time) for n in range(1, 9))
    return edges * sum(partials)


def _semitones(steps: float) -> float:
    """Hz, counted from the A below middle C in equal temperament."""
    return 220.0 * 2 ** (steps / 12)


def _chords(samples: int, rng: np.random.Generator) -> Samples:
    """Triads of I, V, vi and IV, as of a piano."""
    events = []
    for place, start in enumerate(_moments(samples / SAMPLE_RATE, (0.9, 0.9), rng)):
        root, third = ((0, 4), (7, 4), (9, 3), (5, 4))[place % 4]
        events += [(start, _note(_semitones(root + n), 2.5, 1.5)) for n in (-12, 0, third, 7)]
    return _placed(samples, events)


def _melody(samples: int, rng: np.random.Generator) -> Samples:
    """Notes of a pentatonic scale with vibrato, as of a flute or a voice without words."""
    scale = (0, 2, 4, 7, 9, 12, 14, 16)
    events = []
    for start in _moments(samples / SAMPLE_RATE, (0.25, 0.8), rng):
        pitch = _semitones(float(rng.choice(scale)))
        events.append((start, _note(pitch, rng.uniform(0.3, 1.2), 2.0, vibrato=0.4)))
    return _placed(samples, events)


def _clicks(samples: int, rng: np.random.Generator) -> Samples:
    """Keys, knocks and ticks: short resonances, irregular, over faint noise."""
    events = []
    for start in _moments(samples / SAMPLE_RATE, (0.05, 0.7), rng):
        time = _time(round(0.1 * SAMPLE_RATE))
        ring = np.sin(2 * np.pi * rng.uniform(200, 4_000) * time + rng.random())
        events.append((start, rng.uniform(0.2, 1.0) * ring * np.exp(-rng.uniform(60, 400) * time)))
    return _placed(samples, events) + 0.002 * _noise(samples, 1.0, rng)


def _engine(samples: int, rng: np.random.Generator) -> Samples:
    """A rumble whose speed wanders between 25 and 60 firings a second, over brown noise."""
    wander = np.cumsum(_noise(samples, 2.0, rng)) / SAMPLE_RATE
    speed = np.clip(40 + 15 * wander / max(np.abs(wander).max(), 1e-9), 25, 60)
    phase = 2 * np.pi * np.cumsum(speed) / SAMPLE_RATE
    firing = sum(np.sin(n * phase + rng.random()) / n**0.7 for n in range(1, 25))
    return firing + 1.5 * _noise(samples, 2.0, rng) * (1 + 0.5 * np.sin(phase))


def _telephone(samples: int, rng: np.random.Generator) -> Samples:
    """Keys dialled (ITU-T Q.23), and the ringing of North America and of Europe (ITU-T E.180)."""
    dialled, ringing = rng.uniform(1, 5), rng.integers(2)
    rows, columns = (697, 770, 852, 941), (1209, 1336, 1477)
    events = []
    for start in _moments(dialled, (0.15, 0.3), rng):
        pair = (float(rng.choice(rows)), float(rng.choice(columns)))
        events.append((start, _tones(pair, 0.1)))
    seconds, pause, tones = ((2.0, 4.0, (440.0, 480.0)), (1.0, 4.0, (425.0,)))[ringing]
    rings = np.arange(dialled + 1, samples / SAMPLE_RATE, seconds + pause)
    events += [(float(start), _tones(tones, seconds)) for start in rings]
    return _placed(samples, events)


def _tones(pitches: Sequence[float], seconds: float) -> Samples:
    time = _time(round(seconds * SAMPLE_RATE))
    return np.sum([np.sin(2 * np.pi * pitch * time) for pitch in pitches], axis=0)


def _siren(samples: int, rng: np.random.Generator) -> Samples:
    """A tone that sweeps between 600 and 1,400 Hz, with harmonics."""
    sweep = 1_000 + 400 * np.sin(2 * np.pi * rng.uniform(0.2, 1.5) * _time(samples))
    phase = 2 * np.pi * np.cumsum(sweep) / SAMPLE_RATE
    return np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.3 * np.sin(3 * phase)


def _breath(samples: int, rng: np.random.Generator) -> Samples:
    """Bursts of pink noise that swell and fade within 0.3 to 1.5 s."""
    events = []
    for start in _moments(samples / SAMPLE_RATE, (0.8, 4.0), rng):
        length = round(rng.uniform(0.3, 1.5) * SAMPLE_RATE)
        events.append((start, _noise(length, rng.uniform(0.5, 1.5), rng) * np.hanning(length)))
    return _placed(samples, events) + 0.003 * _noise(samples, 0.0, rng)


SOUNDS: dict[str, Sound] = {
    "white noise": lambda samples, rng: _noise(samples, 0.0, rng),
    "pink noise": lambda samples, rng: _noise(samples, 1.0, rng),
    "brown noise": lambda samples, rng: _noise(samples, 2.0, rng),
    "hum, 50 Hz": lambda samples, rng: _hum(samples, 50.0, rng),
    "hum, 60 Hz": lambda samples, rng: _hum(samples, 60.0, rng),
    "chords": _chords,
    "melody": _melody,
    "clicks": _clicks,
    "engine": _engine,
    "telephone signals": _telephone,
    "siren": _siren,
    "breath": _breath,
}


@dataclass(frozen=True)
class Clip:
    """A sound without speech: float32 (samples,) at 16 kHz, and what it is."""

    name: str
    waveform: Tensor


def make_clips(seed: int = 0) -> list[Clip]:
    """All sounds at all levels, digital silence and dither; 608 s."""
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.linspace(*SECONDS, len(SOUNDS) * len(LEVELS_DB) + 2)).tolist()
    clips = []
    for name, sound in SOUNDS.items():
        for db in LEVELS_DB:
            samples = round(lengths.pop() * SAMPLE_RATE)
            waveform = torch.from_numpy(sound(samples, rng)).float()
            waveform = (waveform * 10 ** (db / 20) / level(waveform)).clamp(-1, 1)
            clips.append(Clip(f"{name}, {db} dB", waveform))
    for name, steps in (("digital silence", 0), ("dither", 1)):
        samples = round(lengths.pop() * SAMPLE_RATE)
        dither = rng.random(samples) - rng.random(samples)  # triangular, a step wide to each side
        rounded = np.round(steps * dither) / 2**15
        clips.append(Clip(name, torch.from_numpy(rounded.astype(np.float32))))
    return clips


@dataclass(frozen=True)
class Heard:
    """Text that a mode made of a clip; seconds are the clip's."""

    mode: Mode
    clip: str
    seconds: float
    text: str


def listen(recognizer: Recognizer, clips: Sequence[Clip], modes: Sequence[Mode]) -> list[Heard]:
    """What was heard in the clips that got any text."""
    waveforms = [clip.waveform for clip in clips]
    return [
        Heard(mode, clip.name, len(clip.waveform) / SAMPLE_RATE, transcript.text)
        for mode in modes
        for clip, transcript in zip(
            clips,
            recognizer.transcribe(waveforms, TranscribeOptions(mode=mode)).transcripts,
            strict=True,
        )
        if transcript.text
    ]


def markdown(clips: Sequence[Clip], heard: Sequence[Heard], modes: Sequence[Mode]) -> str:
    """A table with a line for each mode."""
    lines = [
        "| | clips with words | words in clips | words in the long file |",
        "|---|---|---|---|",
    ]
    for mode in modes:
        own = [h for h in heard if h.mode == mode]
        short = [len(h.text.split()) for h in own if h.clip != LONG]
        long = sum(len(h.text.split()) for h in own if h.clip == LONG)
        lines.append(f"| `{mode}` | {len(short)} of {len(clips) - 1} | {sum(short)} | {long} |")
    return "\n".join(lines)


def main() -> None:
    """Print each clip that got words, and their number."""
    parser = argparse.ArgumentParser(description="Words heard where nobody speaks.")
    parser.add_argument("--checkpoint", type=Path, default=Path("model/shipped"))
    parser.add_argument("--mode", nargs="+", choices=get_args(Mode), default=get_args(Mode))
    parser.add_argument("--limit", type=int, help="clips to make, the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="folder for non_speech.json")
    parser.add_argument("--document", type=Path, help="page whose table `non-speech` to fill")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clips = make_clips(args.seed)[: args.limit]
    clips.append(Clip(LONG, torch.cat([clip.waveform for clip in clips])))
    recognizer = Recognizer.load(args.checkpoint)
    heard = listen(recognizer, clips, args.mode)
    for entry in heard:
        print(f"{entry.mode}, {entry.clip}, {entry.seconds:.1f} s: {entry.text}")
    table = markdown(clips, heard, args.mode)
    print(table)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        facts = {
            "command": f"python -m tests.benchmarks.non_speech {shlex.join(sys.argv[1:])}",
            "clips": {clip.name: len(clip.waveform) / SAMPLE_RATE for clip in clips},
            "dtype": recognizer.dtype,
            "machine": asdict(Machine.here(recognizer.device)),
            "heard": [asdict(entry) for entry in heard],
        }
        write_text(args.output / "non_speech.json", json.dumps(facts, indent=2) + "\n")
    if args.document:
        fill(args.document, "non-speech", table)


if __name__ == "__main__":
    main()
