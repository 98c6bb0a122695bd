"""Word error rates in noise, in a room, over a telephone, at other tempos and from a poor MP3.

    python -m tests.benchmarks.robustness --manifest test.jsonl [--voices dev.jsonl] [--checkpoint DIR]
        [--peers-python .venv-peers/bin/python | --peer-from docs/robustness/robustness.json]

A clip meets the same voices, noise and room in each run, whatever else is in the manifest. A peer hears
the same samples, so that what a condition costs can be told from what it costs everybody. It takes half
an hour; since its texts do not depend on Steno, its figures can be those of a former run.
"""

import argparse
import json
import shlex
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from model.recognizer import Mode, Recognizer, TranscribeOptions
from tests.benchmarks.accuracy import Bench, Clip, read_clips
from tests.benchmarks.accuracy_systems import System, all_systems
from tests.benchmarks.conditions import CLEAN, CONDITIONS
from training.documents import fill
from training.files import atomic_writer, write_text
from training.machine import Machine
from training.scoring import NORMALIZER, Pair, Rate, bootstrap_interval, score

GOAL = 1.6  # times the clean error rate, in 10 dB of noise
JUDGED = "10 dB"
CLIPS_WITH_ERRORS = 20  # clean; an interval of a ratio to fewer would say nothing


# What most users would pick in Steno's place, at its cost on disk.
PEER = "Whisper base int8, beam 5 batched"

Transcribe = Callable[[Sequence[Clip]], list[str]]


@dataclass(frozen=True)
class Result:
    """Word errors of a system in a condition.

    `times_clean` is the rate over the clean one, with the 95 % bootstrap interval over the clips, each
    drawn with both its counts of errors; None where fewer than 20 clips have an error when clean.
    """

    system: str
    condition: str
    wer: Rate
    times_clean: tuple[float, float, float] | None  # value, low, high


def steno(recognizer: Recognizer, mode: Mode) -> Transcribe:
    """A mode of the recognizer, all clips in one call."""
    options = TranscribeOptions(mode=mode, word_timestamps=False)
    return lambda clips: [
        transcript.text
        for transcript in recognizer.transcribe([c.samples for c in clips], options).transcripts
    ]


def peer(clips: Sequence[Clip], system: System, python: Path, threads: int) -> list[str]:
    """The texts of a system that has a Python of its own."""
    with TemporaryDirectory(prefix="robustness-") as folder:
        bench = Bench(clips, timed=0, peers_python=python, folder=Path(folder))
        texts = bench.run(system, threads, whole=True)["texts"]
    return [texts[str(i)] for i in range(len(clips))]


def measure(
    systems: Mapping[str, Transcribe], clips: Sequence[Clip], voices: Sequence[Clip], seed: int
) -> list[Result]:
    """Have all clips transcribed in all conditions; babble is made of `voices` of other speakers."""
    results: list[Result] = []
    clean: dict[str, list[int]] = {}
    for name, condition in tqdm(CONDITIONS.items(), disable=not sys.stderr.isatty(), leave=False):
        changed = []
        for clip in clips:
            own = clip.utterance
            others = [v.samples for v in voices if v.utterance.speaker != own.speaker]
            rng = np.random.default_rng((seed, zlib.crc32(own.audio_filepath.name.encode())))
            changed.append(replace(clip, samples=condition(clip.samples, others, rng)))
        for system, transcribe in systems.items():
            pairs = [
                Pair(clip.id, clip.utterance.text, text, clip.seconds, clip.utterance.speaker)
                for clip, text in zip(changed, transcribe(changed), strict=True)
            ]
            scores = score(pairs, seed=seed)
            errors = [scored.word_errors for scored in scores.utterances]
            before = clean.setdefault(system, errors)  # CLEAN is the first condition
            times = None
            if sum(map(bool, before)) >= CLIPS_WITH_ERRORS:
                interval = bootstrap_interval(errors, before, seed=seed)
                times = (sum(errors) / sum(before), *interval)
            results.append(Result(system, name, scores.wer, times))
    return results


def former(path: Path, clips: Sequence[Clip]) -> list[Result]:
    """The peer's results in a former run's `robustness.json`.

    Raises:
        ValueError: that run was of other clips, or had no peer.
    """
    facts = json.loads(path.read_text())
    here = len(clips), sum(clip.seconds for clip in clips)
    there = facts["clips"], facts["seconds"]
    if here != there:
        raise ValueError(f"{path} is of {there} clips and seconds; the manifest has {here}")
    found = [
        Result(line["system"], line["condition"], Rate(**line["wer"]), line["times_clean"])
        for line in facts["results"]
        if line["system"] == PEER
    ]
    if [result.condition for result in found] != list(CONDITIONS):
        raise ValueError(f"{path} does not have {PEER} in all conditions")
    return found


def markdown(results: Sequence[Result]) -> str:
    """A table with a line for each condition and two columns for each system."""
    systems = list(dict.fromkeys(result.system for result in results))
    lines = ["| | " + " | ".join(f"{name} (95 %) | over clean (95 %)" for name in systems) + " |"]
    lines.append("|---" * (1 + 2 * len(systems)) + "|")
    for condition in CONDITIONS:
        cells = [condition]
        for result in (r for r in results if r.condition == condition):
            wer = result.wer
            cells.append(f"{wer.value:.1%} ({wer.low:.1%}–{wer.high:.1%})")
            cells.append("–" if result.times_clean is None else _times(*result.times_clean))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _times(value: float, low: float, high: float) -> str:
    return f"{value:.2f} ({low:.2f}–{high:.2f})"


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw the error rates with their intervals as a PNG, one panel for each system."""
    systems = list(dict.fromkeys(result.system for result in results))
    figure = Figure(figsize=(4.8 * len(systems), 4.6), layout="constrained")
    panels = figure.subplots(1, len(systems), sharex=True, sharey=True, squeeze=False)[0]
    for axes, system in zip(panels, systems, strict=True):
        own = [result for result in results if result.system == system]
        values = np.array([[r.wer.value, r.wer.low, r.wer.high] for r in own]).T * 100
        axes.barh(
            [r.condition for r in own],
            values[0],
            xerr=np.maximum([values[0] - values[1], values[2] - values[0]], 0),
            color=["#0072B2" if r.condition == CLEAN else "#56B4E9" for r in own],
            error_kw={"elinewidth": 1, "capsize": 3},
        )
        axes.axvline(GOAL * values[0][0], color="#D55E00", linestyle="--", label=f"{GOAL} × clean")
        axes.set(title=system, xlabel="WER (%), with 95 % interval")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    panels[0].invert_yaxis()
    panels[0].set_xlim(left=0)  # of all, when all is drawn
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=120)


def main() -> None:
    """Print the table, and whether 10 dB of noise cost no more than the goal."""
    parser = argparse.ArgumentParser(description="Word error rates in difficult conditions.")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument(
        "--voices", type=Path, help="manifest with the voices of the babble; the same if not given"
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("model/shipped"))
    parser.add_argument("--mode", nargs="+", choices=get_args(Mode), default=get_args(Mode))
    parser.add_argument(
        "--peers-python", type=Path, help="Python with the peers' packages; without it no peer"
    )
    parser.add_argument(
        "--peer-from", type=Path, help="robustness.json of a former run, for the peer's figures"
    )
    parser.add_argument("--limit", type=int, help="clips to take, the manifest's first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="folder for robustness.json and .png")
    parser.add_argument("--document", type=Path, help="page whose table `robustness` to fill")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clips = read_clips(args.manifest, args.limit)
    peers = former(args.peer_from, clips) if args.peer_from else []
    recognizer = Recognizer.load(args.checkpoint)
    systems: dict[str, Transcribe] = {
        f"Steno {mode}": steno(recognizer, mode) for mode in args.mode
    }
    if args.peers_python:
        (system,) = (s for s in all_systems(str(args.checkpoint), ()) if s.name == PEER)
        systems[PEER] = partial(peer, system=system, python=args.peers_python, threads=args.threads)
    voices = read_clips(args.voices or args.manifest, None)
    results = [*measure(systems, clips, voices, args.seed), *peers]
    table = markdown(results)
    print(table)
    for result in results:
        if JUDGED in result.condition and result.times_clean:
            verdict = "within" if result.times_clean[0] <= GOAL else "above"
            times = _times(*result.times_clean)
            print(f"{result.system}, {result.condition}: {times} × clean, {verdict} {GOAL}")
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        facts = {
            "command": f"python -m tests.benchmarks.robustness {shlex.join(sys.argv[1:])}",
            "clips": len(clips),
            "seconds": sum(clip.seconds for clip in clips),
            "speakers": len({clip.utterance.speaker for clip in clips}),
            "dtype": recognizer.dtype,
            "machine": asdict(Machine.here(recognizer.device)),
            "normalizer": NORMALIZER,
            "results": [asdict(result) for result in results],
        }
        write_text(args.output / "robustness.json", json.dumps(facts, indent=2) + "\n")
        draw(results, args.output / "robustness.png")
    if args.document:
        fill(args.document, "robustness", table)


if __name__ == "__main__":
    main()
