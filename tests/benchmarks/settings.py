"""Throughput and latency of TorchServe under other settings of workers, threads, batch and delay.

    python -m tests.benchmarks.settings --manifest test.jsonl [--limit 48] [--rounds 2]

One thing differs from the shipped settings at a time. A server with those is up all the time, and has
each turn beside the other: this machine's speed may change within a minute.
"""

import argparse
import os
import random
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from handler.server import TorchServe
from tests.benchmarks.accuracy import QUIET_LOAD, Clip, read_clips
from tests.benchmarks.serving import (
    MANY,
    PASSES,
    clips_of_ten_seconds,
    draw_evenly,
    recordings,
)
from tests.benchmarks.serving_client import Calls, Client, in_turn, wait_for_all_workers
from tests.benchmarks.setting import Setting
from training.documents import fill
from training.machine import Machine

PROBES = 20  # of a clip of 10 s, for each setting


def settings(cores: int) -> list[Setting]:
    """The shipped ones, then those with one difference, and smaller batches for a worker a core."""
    return [
        Setting(),
        Setting(workers=cores),
        *(Setting(workers=cores, batch=n) for n in (4, 1)),
        Setting(workers=cores, threads=1),
        Setting(threads=1),
        *(Setting(batch=n) for n in (1, 4, 16)),
        *(Setting(delay=n) for n in (10, 100)),
    ]


@dataclass(frozen=True)
class Found:
    """What one setting gave.

    Attributes:
        seconds: for all files, by number of callers.
        shares: of the shipped settings' speed, by number of callers, in each round.
        p95: seconds of a request, the 95th percentile, by number of callers.
        alone: seconds of a clip of 10 s when nobody else calls, the median.
        loaded: the same at half of the capacity, the 95th percentile.
    """

    seconds: dict[int, float]
    shares: dict[int, list[float]]
    p95: dict[int, float]
    alone: float
    loaded: float


@contextmanager
def serving(setting: Setting, checkpoint: Path, clips: Sequence[Clip]) -> Iterator[Client]:
    """A warm server with a setting."""
    with (
        TemporaryDirectory(prefix="settings-") as name,
        TorchServe(setting.build(checkpoint, Path(name))) as server,
    ):
        wait_for_all_workers(server)
        client = Client(server)
        client.closed_loop([recordings(clips, random.Random(0))], MANY)
        yield client


def measure(client: Client, shipped: Client, clips: Sequence[Clip], rounds: int) -> Found:
    """Call alone, many at once, and at random times; the first two by turns with the shipped ones."""
    rng = random.Random(1)  # the same files for each setting
    both = {"": client, "shipped": shipped}
    found: dict[int, list[dict[str, Calls]]] = {1: [], MANY: []}
    for _ in range(rounds):
        found[1].append(in_turn(both, [recordings(clips, rng)], rng))
        passes = [recordings(clips, rng) for _ in range(PASSES)]
        order = rng.sample(list(both), len(both))
        found[MANY].append({name: both[name].closed_loop(passes, MANY) for name in order})
    seconds = {n: statistics.median(turn[""].seconds for turn in own) for n, own in found.items()}
    ten = clips_of_ten_seconds([clip.samples for clip in clips], PROBES, rng)
    others = recordings(clips, rng)
    alone, loaded = client.probe(ten, others, len(clips) / seconds[MANY] / 2, seed=0)
    return Found(
        seconds,
        {n: [t["shipped"].seconds / t[""].seconds for t in own] for n, own in found.items()},
        {
            n: float(np.quantile([s for t in own for s in t[""].latency], 0.95))
            for n, own in found.items()
        },
        statistics.median(alone),
        float(np.quantile(loaded, 0.95)),
    )


def differences(setting: Setting, shipped: Mapping[str, Any], cores: int) -> list[str]:
    """The first cells of a setting's row; what differs from the shipped settings is bold."""
    workers = setting.workers or shipped["minWorkers"]
    threads = str(setting.threads or cores)
    if workers > 1 and not setting.threads:  # while others are at work, and alone
        threads = f"{cores // workers}–{cores}"
    values = [
        (f"{workers} × {threads}", setting.workers or setting.threads),
        (setting.batch or shipped["batchSize"], setting.batch),
        (setting.delay or shipped["maxBatchDelay"], setting.delay),
    ]
    return [f"**{value}**" if differs else f"{value}" for value, differs in values]


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
    values = Setting().config()
    cores = len(os.sched_getaffinity(0))
    lines = [
        "| workers × threads | batch | delay, ms | RTFx, 1 caller | of the first row's | p95, s"
        f" | RTFx, {MANY} callers | of the first row's | p95, s"
        " | 10 s clip alone, s | p95 at half load, s | ratio |",
        "|---" * 12 + "|",
    ]
    with serving(Setting(), args.checkpoint, clips) as shipped:
        for setting in settings(cores):
            cells = differences(setting, values, cores)
            with serving(setting, args.checkpoint, clips) as client:
                found = measure(client, shipped, clips, args.rounds)
            for callers, seconds in found.seconds.items():
                cells.append(f"{audio / seconds:.1f}")
                cells.append(", ".join(f"{share:.2f}" for share in found.shares[callers]))
                cells.append(f"{found.p95[callers]:.2f}")
            cells.append(f"{found.alone:.2f}")
            cells.append(f"{found.loaded:.2f}")
            cells.append(f"{found.loaded / found.alone:.1f}")
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    conditions = (
        f"{len(clips)} clips, {audio / 60:.1f} minutes, medians of {args.rounds} rounds, on"
        f" {datetime.now(UTC).date()} by"
        f" `python -m tests.benchmarks.settings {shlex.join(sys.argv[1:])}` on"
        f" {Machine.here(torch.device('cpu'))}. Load before: {load:.1f}."
    )
    table = "\n".join([conditions, "", *lines])
    print(table)
    if args.document:
        fill(args.document, "settings", table)


if __name__ == "__main__":
    main()
