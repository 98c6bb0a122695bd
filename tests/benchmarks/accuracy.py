"""Steno beside its peers on the same clips: error rates, speed, size.

    python -m tests.benchmarks.accuracy --manifest test.jsonl [--only 'Steno*' 'Whisper * int8*']

Every system gets the same decoded samples; decoding the files is in no system's time. Each measurement
has a process of its own, which is bound to as many cores as it has threads. A part of the clips, evenly
drawn from all lengths, is timed in several rounds, in each of which every system has its turn: what
else the machine does falls on all, and is measured too. Error rates are those of all clips; the peers'
texts are kept, because they depend on neither the load nor our checkpoint.
"""

import argparse
import hashlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from tqdm import tqdm

from model.audio import SAMPLE_RATE, load_audio
from model.checkpoint import WEIGHTS
from model.precision import precisions
from tests.benchmarks.accuracy_plot import draw
from tests.benchmarks.accuracy_results import (
    SHORT_SECONDS,
    Result,
    Spread,
    errors_table,
    hypotheses,
    interval_facts,
    peers_table,
    speed_table,
)
from tests.benchmarks.accuracy_systems import System, all_systems
from tests.benchmarks.accuracy_texts import PeerTexts
from training.corpus_statistics import fingerprint
from training.documents import fill
from training.files import write_text
from training.machine import Machine
from training.manifest import Utterance, read_manifest
from training.scoring import Pair, score

THREADS = (1, 2)
QUIET_LOAD = 0.3  # processes that ran on average in the last minute


@dataclass(frozen=True)
class Clip:
    """A recording of the manifest; `seconds` and `samples` are what was decoded."""

    id: str  # its path from the manifest's folder
    utterance: Utterance
    samples: torch.Tensor
    sha256: str  # of the file

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


class Bench:
    """Runs the systems on one set of clips, each time in a process of its own.

    Args:
        clips: decoded recordings.
        timed: how many of them are timed.
        peers_python: the Python that has the peers' packages.
        folder: for what the processes tell each other.
    """

    def __init__(self, clips: Sequence[Clip], timed: int, peers_python: Path, folder: Path) -> None:
        self.seconds = [clip.seconds for clip in clips]
        by_length = sorted(range(len(clips)), key=lambda i: self.seconds[i])
        drawn = min(timed, len(clips))
        self.timed = [by_length[int((k + 0.5) * len(clips) / drawn)] for k in range(drawn)]
        self.rest = sorted(set(by_length) - set(self.timed))
        self.peers_python = peers_python
        self.folder = folder
        self.others: list[float] = []  # cores that other processes used, in each turn
        self.audio = folder / "audio.npz"
        np.savez(self.audio, *(clip.samples.numpy() for clip in clips))

    def run(self, system: System, threads: int, *, whole: bool) -> dict[str, Any]:
        """Give a system its turn; `whole` has it transcribe the clips that are not timed too.

        Raises:
            RuntimeError: its process failed.
        """
        groups = self._groups(self.timed, system)
        if whole:
            groups += self._groups(self.rest, system)
        job, answer = self.folder / "job.json", self.folder / "answer.json"
        job.write_text(
            json.dumps(
                {
                    "system": asdict(system),
                    "threads": threads,
                    "audio": str(self.audio),
                    "groups": groups,
                    "answer": str(answer),
                }
            )
        )
        python = sys.executable if system.loader == "steno" else str(self.peers_python)
        started, busy = time.monotonic(), _others_seconds()
        process = subprocess.run(
            [python, "-m", "tests.benchmarks.accuracy_worker", str(job)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
        )
        if process.returncode:
            raise RuntimeError(f"{system.name} failed: {process.stderr[-2000:]}")
        others = (_others_seconds() - busy) / (time.monotonic() - started)
        self.others.append(max(others, 0.0))
        found: dict[str, Any] = json.loads(answer.read_text())
        return {**found, "groups": groups}

    def rtfx(self, answer: dict[str, Any], *, short: bool) -> float | None:
        """Audio seconds in a second, of the timed clips or of the short ones among them."""
        timed = set(self.timed)
        audio = wall = 0.0
        for group, seconds in zip(answer["groups"], answer["seconds"], strict=True):
            if timed.issuperset(group) and not (short and self._is_long(group[0])):
                audio += sum(self.seconds[i] for i in group)
                wall += seconds
        return audio / wall if wall else None

    def _groups(self, clips: Sequence[int], system: System) -> list[list[int]]:
        """What a system gets at once: a clip, or all short ones, and then all long ones."""
        if not system.batched:
            return [[i] for i in clips]
        parts = [[i for i in clips if self._is_long(i) == long] for long in (False, True)]
        return [part for part in parts if part]

    def _is_long(self, clip: int) -> bool:
        return self.seconds[clip] >= SHORT_SECONDS


def _others_seconds() -> float:
    """CPU seconds since the start of the machine that were not ours, with what a hypervisor took."""
    machine, own = psutil.cpu_times(), os.times()
    busy = machine.user + machine.nice + machine.system + machine.irq + machine.softirq
    return busy + machine.steal - sum(own[:4])  # ours, and of processes that have ended


def measure(
    bench: Bench,
    clips: Sequence[Clip],
    systems: Sequence[System],
    peer_texts: PeerTexts,
    rounds: int,
    seed: int,
) -> tuple[list[Result], dict[str, str]]:
    """Take all rounds; returns the results and the versions of the systems' packages."""
    rtfx: defaultdict[tuple[str, int, bool], list[float]] = defaultdict(list)
    texts: dict[str, list[str]] = {}
    for system in systems:
        if system.loader != "steno" and (known := peer_texts.get(system.name)):
            texts[system.name] = known
    sizes: dict[str, int] = {}
    versions: dict[str, str] = {}
    turns = [
        (threads, system)
        for _ in range(rounds)
        for threads in THREADS
        for system in systems
        if threads <= system.most_threads
    ]
    bar = tqdm(turns, unit="turn", disable=not sys.stderr.isatty(), leave=False)
    for threads, system in bar:
        name = system.name
        bar.set_description(f"{name}, {threads} threads")
        whole = name not in texts and threads == min(max(THREADS), system.most_threads)
        answer = bench.run(system, threads, whole=whole)
        if whole:
            texts[name] = [answer["texts"][str(i)] for i in range(len(clips))]
            if system.loader != "steno":
                peer_texts.put(name, texts[name], answer["versions"])
        elif system.loader != "steno" and name in texts:
            peer_texts.check(name, answer["versions"])
        sizes[name] = answer["model_bytes"]
        versions |= answer["versions"]
        for short in (False, True):
            value = bench.rtfx(answer, short=short)
            if value is not None:
                rtfx[name, threads, short].append(value)

    def spreads(name: str, short: bool) -> dict[int, Spread]:
        return {n: Spread(tuple(rtfx[name, n, short])) for n in THREADS if rtfx[name, n, short]}

    def result(system: System) -> Result:
        pairs = [
            Pair(
                id=clip.id,
                reference=clip.utterance.text,
                hypothesis=text,
                duration=clip.seconds,
                speaker=clip.utterance.speaker,
            )
            for clip, text in zip(clips, texts[system.name], strict=True)
        ]
        return Result(
            system=system,
            scores=score(pairs, seed=seed),
            short_scores=score([p for p in pairs if p.duration < SHORT_SECONDS], seed=seed),
            rtfx=spreads(system.name, short=False),
            short_rtfx=spreads(system.name, short=True),
            model_bytes=sizes[system.name],
        )

    return [result(system) for system in systems], versions


def read_clips(manifest: Path, limit: int | None) -> list[Clip]:
    """Decode the first `limit` recordings of a manifest, or all; says which lines it cannot use."""
    utterances, rejected = read_manifest(manifest)
    for line in rejected:
        print(f"{manifest}, line {line.line}, is left out: {line.reason}", file=sys.stderr)
    clips = []
    for utterance in utterances[:limit]:
        content = utterance.audio_filepath.read_bytes()
        clips.append(
            Clip(
                id=os.path.relpath(utterance.audio_filepath, manifest.parent),
                utterance=utterance,
                samples=load_audio(content),
                sha256=hashlib.sha256(content).hexdigest(),
            )
        )
    return clips


def main() -> None:
    """Print the tables; write `results.json` and the plot, and fill a document, where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.accuracy",
        description="Error rates and speed of Steno and its peers.",
    )
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("model/shipped"))
    parser.add_argument("--peers-python", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument(
        "--only", nargs="+", default=["*"], help="patterns of the systems' names, as 'Steno*'"
    )
    parser.add_argument("--limit", type=int, help="clips to take, the manifest's first")
    parser.add_argument("--timed", type=int, default=8, help="of them, clips to time")
    parser.add_argument(
        "--peer-texts",
        type=Path,
        default=Path("runs/accuracy/peer_texts.json"),
        help="file where the peers' texts are kept: a second run only times the peers",
    )
    parser.add_argument("--rounds", type=int, default=3, help="in which each clip is timed")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap intervals")
    parser.add_argument("--output", type=Path, help="folder for results.json and wer_rtfx.svg")
    parser.add_argument("--hypotheses", type=Path, help="JSON Lines file for all texts")
    parser.add_argument("--document", type=Path, help="page whose tables to fill")
    args = parser.parse_args()
    offered = all_systems(str(args.checkpoint), precisions(torch.device("cpu")))
    systems = [s for s in offered if any(fnmatch(s.name, pattern) for pattern in args.only)]
    if not systems:
        names = "\n  ".join(system.name for system in offered)
        parser.error(f"--only names none of\n  {names}")
    if any(s.loader != "steno" for s in systems) and not args.peers_python.is_file():
        parser.error(
            f"--peers-python {args.peers_python} is not there; `make bench-accuracy` makes it"
        )
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        print(
            f"Beware: the machine is busy (load {load:.1f}); speeds will be low.", file=sys.stderr
        )
    clips = read_clips(args.manifest, args.limit)
    started_at = datetime.now(UTC)
    checkpoint_sha256 = hashlib.sha256((args.checkpoint / WEIGHTS).read_bytes()).hexdigest()
    with TemporaryDirectory(prefix="accuracy-") as folder:
        bench = Bench(clips, args.timed, args.peers_python, Path(folder))
        peer_texts = PeerTexts(args.peer_texts, [clip.sha256 for clip in clips])
        results, versions = measure(bench, clips, systems, peer_texts, args.rounds, args.seed)
    machine = Machine.here(torch.device("cpu"))
    facts = {
        "command": f"python -m tests.benchmarks.accuracy {shlex.join(sys.argv[1:])}",
        "measured_at": started_at.isoformat(timespec="seconds"),
        "other_processes_cores": {
            "mean": statistics.mean(bench.others),
            "most": max(bench.others),
        },
        "processor": machine.processor,
        "cores": machine.cores,
        "precisions": precisions(torch.device("cpu")),
        "versions": machine.versions | versions,
        "manifest": str(args.manifest),
        "data_fingerprint": fingerprint((clip.utterance, clip.sha256) for clip in clips),
        "clips": len(clips),
        "seconds": sum(bench.seconds),
        "speakers": len({clip.utterance.speaker for clip in clips}),
        "short_clips": sum(seconds < SHORT_SECONDS for seconds in bench.seconds),
        "timed_clips": [clips[i].id for i in bench.timed],
        "rounds": args.rounds,
        "checkpoint": str(args.checkpoint),
        "checkpoint_sha256": checkpoint_sha256,
        **interval_facts(args.seed),
    }
    tables = {
        "conditions": conditions(facts),
        "errors": errors_table(results),
        "speed": speed_table(results),
        "peers": peers_table(results, args.seed),
    }
    print("\n\n".join(tables.values()))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        entries = [result.metrics() for result in results]
        content = json.dumps({**facts, "systems": entries}, indent=2, ensure_ascii=False)
        write_text(args.output / "results.json", content + "\n")
        draw(results, args.output / "wer_rtfx.svg")
    if args.hypotheses:
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in hypotheses(results))
        write_text(args.hypotheses, "".join(lines))
    if args.document:
        for name, table in tables.items():
            fill(args.document, name, table)


def conditions(facts: dict[str, Any]) -> str:
    """A paragraph that says on what the figures were taken."""
    peers = [n for n in ("faster-whisper", "ctranslate2", "pocketsphinx") if n in facts["versions"]]
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", *peers))
    others = facts["other_processes_cores"]
    return (
        f"{facts['clips']} clips, {facts['seconds'] / 60:.1f} minutes, speakers: {facts['speakers']};"
        f" {facts['short_clips']} of the clips are under {SHORT_SECONDS:g} s."
        f" Timed: {len(facts['timed_clips'])} clips, rounds: {facts['rounds']}."
        f" Measured on {facts['measured_at'][:10]} with `{facts['command']}`"
        f" on {facts['cores']} cores of {facts['processor']}, which can compute in"
        f" {', '.join(facts['precisions'])};"
        f" {versions}. Meanwhile other processes used {others['mean']:.2f} cores, at most"
        f" {others['most']:.2f} in one measurement."
    )


if __name__ == "__main__":
    main()
