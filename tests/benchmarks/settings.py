"""Throughput and latency of TorchServe under other settings of workers, threads, batch and delay.

    python -m tests.benchmarks.settings --manifest test.jsonl [--limit 48] [--rounds 2]

One thing differs from the shipped settings at a time. Each server runs alone, on the same cores.
"""

import argparse
import os
import random
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from handler.server import TorchServe
from tests.benchmarks.accuracy import QUIET_LOAD, Clip, read_clips
from tests.benchmarks.serving import (
    CALLERS,
    PASSES,
    PROBES,
    clip_of_ten_seconds,
    draw_evenly,
    recordings,
)
from tests.benchmarks.serving_client import Client, wait_for_all_workers
from tests.benchmarks.setting import Setting
from training.documents import fill
from training.machine import Machine


def settings(cores: int) -> list[Setting]:
    """The shipped ones, then those with one difference."""
    return [
        Setting(),
        Setting(workers=cores),
        Setting(workers=cores, batch=4),
        Setting(workers=cores, threads=1),
        Setting(threads=1),
        *(Setting(batch=n) for n in (1, 4, 16)),
        *(Setting(delay=n) for n in (10, 100)),
        *(Setting(seconds=n) for n in (60, 120)),
    ]


@dataclass(frozen=True)
class Found:
    """What one setting gave.

    Attributes:
        callers: for each number of them: seconds for all files, and the 95th percentile of a request's.
        alone: seconds of a clip of 10 s when nobody else calls, the median.
        loaded: the same at half of the capacity, the 95th percentile.
    """

    callers: dict[int, tuple[float, float]]
    alone: float
    loaded: float


def measure(setting: Setting, checkpoint: Path, clips: Sequence[Clip], rounds: int) -> Found:
    """Serve with a setting, and call: alone, many at once, and at random times."""
    with (
        TemporaryDirectory(prefix="settings-") as name,
        TorchServe(setting.build(checkpoint, Path(name))) as server,
    ):
        wait_for_all_workers(server)
        client = Client(server)
        rng = random.Random(0)  # the same files for each setting
        client.closed_loop([recordings(clips, rng)], CALLERS[-1])  # warm
        found = {}
        for callers in CALLERS:
            calls = [
                client.closed_loop(
                    [recordings(clips, rng) for _ in range(PASSES[callers])], callers
                )
                for _ in range(rounds)
            ]
            found[callers] = (
                statistics.median(call.seconds for call in calls),
                statistics.median(float(np.quantile(call.latency, 0.95)) for call in calls),
            )
        capacity = len(clips) / found[CALLERS[-1]][0]
        ten = clip_of_ten_seconds([clip.samples for clip in clips])
        others = recordings(clips, rng)
        alone, loaded = client.probe(ten, others, capacity / 2, PROBES * rounds)
    return Found(found, statistics.median(alone), float(np.quantile(loaded, 0.95)))


def main() -> None:
    """Measure each setting, print the table, and fill a document where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.settings", description="Settings of TorchServe compared."
    )
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("model/shipped"))
    parser.add_argument("--limit", type=int, default=48, help="clips, evenly from all lengths")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--document", type=Path, help="page whose tables to fill")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        print(f"Beware: the machine is busy (load {load:.1f}).", file=sys.stderr)
    clips = draw_evenly(read_clips(args.manifest, None), args.limit)
    audio = sum(clip.seconds for clip in clips)
    shipped = Setting().config()
    cores = len(os.sched_getaffinity(0))
    head = "| workers × threads | batch | delay, ms | padded seconds |"
    head += "".join(f" RTFx, {n} callers | p95, s |" for n in CALLERS).replace(
        "1 callers", "1 caller"
    )
    head += " 10 s clip alone, s | p95 at half load, s | ratio |"
    lines = [head, "|---" * (7 + 2 * len(CALLERS)) + "|"]
    for setting in settings(cores):
        workers = setting.workers or shipped["minWorkers"]
        threads = str(setting.threads or cores)
        if workers > 1 and not setting.threads:  # while others are at work, and alone
            threads = f"{cores // workers}–{cores}"
        values = [
            (f"{workers} × {threads}", setting.workers or setting.threads),
            (setting.batch or shipped["batchSize"], setting.batch),
            (setting.delay or shipped["maxBatchDelay"], setting.delay),
            (setting.seconds or shipped["handler"]["max_batch_seconds"], setting.seconds),
        ]
        cells = [f"**{value}**" if differs else f"{value}" for value, differs in values]
        found = measure(setting, args.checkpoint, clips, args.rounds)
        for seconds, p95 in found.callers.values():
            cells += [f"{audio / seconds:.1f}", f"{p95:.2f}"]
        cells += [f"{found.alone:.2f}", f"{found.loaded:.2f}", f"{found.loaded / found.alone:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    conditions = (
        f"{len(clips)} clips, {audio / 60:.1f} minutes, medians of {args.rounds} rounds, by"
        f" `python -m tests.benchmarks.settings {shlex.join(sys.argv[1:])}` on"
        f" {Machine.here(torch.device('cpu'))}. Load before: {load:.1f}."
    )
    table = "\n".join([conditions, "", *lines])
    print(table)
    if args.document:
        fill(args.document, "settings", table)


if __name__ == "__main__":
    main()
