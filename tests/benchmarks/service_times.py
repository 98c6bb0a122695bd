"""Seconds that a worker takes for a batch, against what is in it; capacity planning lives on it.

    python -m tests.benchmarks.service_times [--checkpoint DIR] [--batches 60] [--workers 2]

Each batch goes through what a TorchServe worker does with it: reading the forms, decoding, recognizing,
writing the answers; TorchServe itself is not in the times. The batches are drawn from the recordings of
the load test, in all sizes up to the handler's. A worker that is alone has all threads; then as many
processes as a pod has workers go through the same batches at once and share the threads, to tell how
fast each is then.
"""

import argparse
import itertools
import json
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from handler.batch import BatchTranscriber, Item
from handler.config import HandlerConfig
from handler.kernels import bound_kernel_caches
from handler.transport import Part
from loadtest.recordings import Kind, Recording, make_recordings
from loadtest.service_time import DEFAULT, ServiceTime
from loadtest.simulation import Pods
from model.recognizer import Recognizer
from training.files import write_text
from training.machine import Machine

SIZES = (1, 1, 2, 3, 4, 6, 8, 8)
# Few long recordings in a batch, or most of the time would go into the slowest batches.
LONG_SHARE = 0.06


def draw(count: int, seed: int) -> list[list[Recording]]:
    """Batches of all sizes, most of one kind or of two."""
    made = make_recordings()
    short: tuple[Kind, ...] = ("command", "sentence")
    rng = random.Random(seed)
    batches = []
    for number in range(count):
        pair = rng.choices(short, k=2)
        kinds: list[Kind] = [
            "long" if rng.random() < LONG_SHARE else rng.choice(pair)
            for _ in range(SIZES[number % len(SIZES)])
        ]
        batches.append([rng.choice(made[kind]) for kind in kinds])
    # Each long recording alone, and a bad one, whatever the draw gave.
    return [*batches, *([recording] for recording in made["long"][::2]), made["bad"][:1]]


def items_of(batch: list[Recording]) -> list[Item]:
    """The batch as TorchServe hands it to the handler."""
    return [
        Item(
            str(number),
            [
                *(Part(name, "", value.encode()) for name, value in recording.fields.items()),
                Part("file", "application/octet-stream", recording.content),
            ],
            {"Content-Type": "multipart/form-data; boundary=x"},
        )
        for number, recording in enumerate(batch)
    ]


def load(checkpoint: Path, threads: int) -> Recognizer:
    """The recognizer as the handler has it; before anything is computed in this process."""
    bound_kernel_caches()
    torch.set_num_threads(threads)  # which it takes as its own
    max_batch_seconds = HandlerConfig().max_batch_seconds
    return Recognizer.load(checkpoint, device="cpu", max_batch_seconds=max_batch_seconds)


def make_worker(recognizer: Recognizer) -> BatchTranscriber:
    """A warm worker with the threads that its recognizer was loaded with."""
    config = HandlerConfig()
    worker = BatchTranscriber(recognizer, config, torch.get_num_threads())
    worker.warm_up(config.warmup_seconds)
    return worker


def keep_busy(checkpoint: Path, threads: int, batches: list[list[Recording]], ready: Event) -> None:
    """Another worker, who answers batches until its process, or the one that began it, is ended."""
    worker = make_worker(load(checkpoint, threads))
    ready.set()
    beginner = multiprocessing.parent_process()
    assert beginner is not None
    for batch in itertools.cycle(batches):
        if not beginner.is_alive():
            return
        worker.answer(items_of(batch))


def measure(worker: BatchTranscriber, batches: list[list[Recording]], rounds: int) -> list[float]:
    """Seconds for each batch: its least. All are answered before one comes again, as for a server."""
    taken: list[list[float]] = [[] for _ in batches]
    for _ in range(rounds):
        for batch, own in zip(batches, taken, strict=True):
            items = items_of(batch)
            started = time.perf_counter()
            worker.answer(items)
            own.append(time.perf_counter() - started)
    return [min(own) for own in taken]


def speeds_together(
    args: argparse.Namespace, batches: list[list[Recording]], alone: Sequence[float]
) -> list[float]:
    """Speed of each of 2, 3, … workers that are at work at once, to that of a lone one."""
    spawning = multiprocessing.get_context("spawn")
    speeds = []
    for count in range(2, args.workers + 1):
        share = max(1, args.threads // count)
        with ExitStack() as stack:
            for number in range(1, count):
                ready = spawning.Event()
                # Each has the batches in an order of its own.
                order = random.Random(number).sample(batches, len(batches))
                other = spawning.Process(
                    target=keep_busy, args=(args.checkpoint, share, order, ready), daemon=True
                )
                other.start()
                stack.callback(other.join)
                stack.callback(other.terminate)
                while not ready.wait(1):
                    if not other.is_alive():
                        raise RuntimeError(f"worker {number} ended with {other.exitcode}")
            found = measure(make_worker(load(args.checkpoint, share)), batches, args.rounds)
        ratios = [own / now for own, now in zip(alone, found, strict=True)]
        speeds.append(statistics.median(ratios))
    return speeds


def main() -> None:
    """Measure, fit, write the model of the service time, and say how well it fits."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.service_times",
        description="Seconds for a batch, against what is in it.",
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("model/shipped"))
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2, help="a batch's least time counts")
    parser.add_argument("--workers", type=int, default=Pods().workers, help="at once, at most")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=DEFAULT)
    args = parser.parse_args()
    batches = draw(args.batches, args.seed)
    recognizer = load(args.checkpoint, args.threads)
    taken = measure(make_worker(recognizer), batches, args.rounds)
    machine = str(Machine.here(recognizer.device))
    measured = [
        ([recording.seconds for recording in batch], seconds)
        for batch, seconds in zip(batches, taken, strict=True)
    ]
    model = ServiceTime.fit(measured, recognizer.max_piece_seconds, recognizer.max_batch_seconds)
    others = speeds_together(args, batches, taken)
    errors = sorted(abs(model.seconds(lengths) / seconds - 1) for lengths, seconds in measured)
    model = model.model_copy(
        update={
            "speeds": (1.0, *others),
            "measured": {
                "command": "python -m tests.benchmarks.service_times " + " ".join(sys.argv[1:]),
                "date": datetime.now(UTC).date().isoformat(),
                "machine": machine,
                "batches": len(measured),
                "median_relative_error": round(errors[len(errors) // 2], 4),
                "largest_relative_error": round(errors[-1], 4),
            },
        }
    )
    content = json.dumps(model.model_dump(), indent=2)
    print(content)
    write_text(args.output, content + "\n")


if __name__ == "__main__":
    main()
