"""Seconds that the worker takes for a batch, against what is in it; capacity planning lives on it.

    python -m tests.benchmarks.service_times [--checkpoint DIR] [--batches 60]

Each batch goes through what a TorchServe worker does with it: reading the forms, decoding, recognizing,
writing the answers; TorchServe itself is not in the times. The batches are drawn from the recordings of
the load test, in all sizes up to the handler's.
"""

import argparse
import json
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from handler.batch import BatchTranscriber, Item
from handler.config import HandlerConfig
from handler.transport import Part
from loadtest.recordings import Kind, Recording, make_recordings
from loadtest.service_time import DEFAULT, ServiceTime
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


def main() -> None:
    """Measure, fit, write the model of the service time, and say how well it fits."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.service_times",
        description="Seconds for a batch, against what is in it.",
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("model/shipped"))
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=2, help="of each batch; the faster counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=DEFAULT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recognizer = Recognizer.load(args.checkpoint)
    config = HandlerConfig()
    worker = BatchTranscriber(recognizer, config, args.threads)
    worker.warm_up(config.warmup_seconds)
    measured = []
    for batch in draw(args.batches, args.seed):
        items = items_of(batch)
        taken = []
        for _ in range(args.repeats):
            started = time.perf_counter()
            worker.answer(items)
            taken.append(time.perf_counter() - started)
        measured.append(([recording.seconds for recording in batch], min(taken)))
    model = ServiceTime.fit(measured, recognizer.max_piece_seconds, recognizer.max_batch_seconds)
    errors = sorted(abs(model.seconds(lengths) / seconds - 1) for lengths, seconds in measured)
    model = model.model_copy(
        update={
            "measured": {
                "command": "python -m tests.benchmarks.service_times " + " ".join(sys.argv[1:]),
                "date": datetime.now(UTC).date().isoformat(),
                "machine": str(Machine.here(recognizer.device)),
                "batches": len(measured),
                "median_relative_error": round(errors[len(errors) // 2], 4),
                "largest_relative_error": round(errors[-1], 4),
            }
        }
    )
    content = json.dumps(model.model_dump(), indent=2)
    print(content)
    write_text(args.output, content + "\n")


if __name__ == "__main__":
    main()
