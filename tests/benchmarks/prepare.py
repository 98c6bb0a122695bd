"""How fast speech is prepared: python -m tests.benchmarks.prepare

A part of a corpus goes through the pipeline's step `prepare`: fetched from a real S3 server, decoded,
checked, packed and stored. It is held against decoding alone, on one core: what no preparation can
beat. The corpus is the shipped clips, each many times over under other names; the bytes differ by a
tag that decoders read over, so that no two are duplicates.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from kfp_pipelines.data import list_speech, prepare_shard, shard_names
from model.audio import SAMPLE_RATE, load_audio
from store import StoreConfig, open_objects
from tests.s3_server import S3Server
from training.machine import Machine
from training.prepare import Criteria

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
# Formats in which trailing bytes are read over; they are what corpora come in.
CLIPS = ("news.flac", "meeting.mp3", "short.wav")
BUCKET = "speech"


def make_corpus(folder: Path, copies: int) -> list[Path]:
    """Write the recordings and their manifest."""
    entries = {
        line["audio_filepath"]: line
        for line in map(json.loads, (FIXTURES / "manifest.jsonl").read_text().splitlines())
    }
    paths, lines = [], []
    for number in range(copies):
        for name in CLIPS:
            path = folder / f"{number:04}-{name}"
            path.write_bytes((FIXTURES / name).read_bytes() + number.to_bytes(4, "big"))
            lines.append({**entries[name], "audio_filepath": path.name, "speaker": str(number)})
            paths.append(path)
    (folder / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


def decode(paths: Sequence[Path]) -> tuple[float, float]:
    """Decode every file in this process: seconds of audio, seconds that it took."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    samples = sum(load_audio(path.read_bytes()).numel() for path in paths)
    return samples / SAMPLE_RATE, time.perf_counter() - started


def prepare(store: StoreConfig, manifest: str, workers: int) -> tuple[float, float]:
    """Run the step on the whole corpus: seconds of audio, seconds that it took."""
    objects = open_objects(store)
    listing = list_speech(objects, manifest, "", store)
    (name,) = shard_names(listing, 1)
    started = time.perf_counter()
    with redirect_stdout(StringIO()):  # it tells of each piece
        shard = prepare_shard(objects, name, Criteria(), workers, store)
    seconds = time.perf_counter() - started
    assert not [*shard.refused()]
    return sum(entry.seconds for _, entry in shard.accepted()), seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.prepare", description=__doc__)
    parser.add_argument("--copies", type=int, default=200, help="of each of the three clips")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary, S3Server() as server:
        os.environ.update(server.environment)
        server.create_bucket(BUCKET)
        folder = Path(temporary)
        paths = make_corpus(folder, options.copies)
        client = server.client()
        for path in [*paths, folder / "all.jsonl"]:
            client.upload_file(str(path), BUCKET, f"in/{path.name}")
        decode(paths[:6])
        audio, base = decode(paths)
        print(Machine.here(torch.device("cpu")))
        print(f"{len(paths)} recordings, {audio / 3600:.2f} h")
        print(f"{'':<24} {'hours a minute':>14} {'to decoding':>12}")
        print(f"{'decoding, one core':<24} {_rate(audio, base):>14.1f} {1.0:>12.2f}")
        for workers in (1, 2):
            store = StoreConfig(url=f"s3://{BUCKET}/out-{workers}")
            found, seconds = prepare(store, f"s3://{BUCKET}/in/all.jsonl", workers)
            name = f"prepare, {workers} worker{'s'[: workers - 1]}"
            ratio = _rate(found, seconds) / _rate(audio, base)
            print(f"{name:<24} {_rate(found, seconds):>14.1f} {ratio:>12.2f}")
    return 0


def _rate(audio: float, seconds: float) -> float:
    """Hours of audio in a minute."""
    return audio / 3600 / (seconds / 60)


if __name__ == "__main__":
    sys.exit(main())
