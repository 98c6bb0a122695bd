"""Retrain on this machine, from recordings in S3 to a transcript by the new version: make pipeline

A real S3 server, the pipeline as Kubeflow gets it, a real TorchServe. The speech is that of
tests/fixtures, the training two steps long: it shows the way and teaches nothing.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kfp_pipelines.local import RunFailed, local_session
from store import ModelStore, StoreConfig
from tests.s3_server import S3Server

FIXTURES = Path(__file__).resolve().parent / "fixtures"
BUCKET = "steno"
PARAMETERS = {
    "data_manifest": f"s3://{BUCKET}/speech/manifest.jsonl",
    "data_dev_share": 0.1,
    "data_test_share": 0.3,
    "data_shards": 2,
    "train_start": "shipped",
    "train_epochs": 1,
    "train_learning_rate": 1e-6,
    # The CTC head alone: a step takes seconds on a laptop.
    "train_overrides": {
        "optimizer.scales": {"encoder.": 0, "decoder.": 0},
        "batches.padded_seconds": 12,
        "batches.workers": 0,
        "augmentation.noise_probability": 0,
    },
}


def upload_fixtures(server: S3Server) -> None:
    """Put the manifest and its recordings into the bucket, as a person would."""
    client = server.client()
    for path in sorted(FIXTURES.iterdir()):
        client.upload_file(str(path), BUCKET, f"speech/{path.name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run twice; the exit status is 0 when the first run deployed and the second said why not."""
    parser = argparse.ArgumentParser(prog="python -m tests.retraining", description=__doc__)
    parser.parse_args(arguments)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="steno-pipeline-"))
    try:
        with S3Server() as server:
            os.environ.update(server.environment)
            server.create_bucket(BUCKET)
            upload_fixtures(server)
            store = StoreConfig(url=f"s3://{BUCKET}/models")
            with local_session(store, folder) as (release, runner):
                for _ in range(2):  # the second takes preparation and training over from the first
                    runner.run(PARAMETERS)
                current = ModelStore.open(store).production()
                if current is None:
                    print("nothing was deployed", file=sys.stderr)
                    return 1
                endpoint = release.take_up(current.version)
                print(f"{current.version} serves at {endpoint.url}:")
                for name in ("short.wav", "meeting.mp3"):
                    print(f"  {name}: {endpoint.transcribe(FIXTURES / name).strip()}")
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder)
    print(f"Everything is stopped. {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
