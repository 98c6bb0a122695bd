"""The whole pipeline, run for real on this machine: S3, every step as a process, TorchServe."""

import builtins
import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from kfp.local.logging_utils import indented_print, local_logger_context

from kfp_pipelines import local
from kfp_pipelines.local import RunFailed, Runner, local_session
from kfp_pipelines.record import notes
from kfp_pipelines.rollout import PROBE, Probe, roll_out
from store import ModelStore, StoreConfig
from tests.random_checkpoint import make_random_checkpoint
from tests.retraining import PARAMETERS
from tests.s3_server import S3Server
from training.package import build_package

BUCKET = "steno"
FIXTURES = Path(__file__).parents[1] / "fixtures"
# A random network gets every word wrong: the gate of a first version has to let that through.
TINY = {
    **PARAMETERS,
    "train_start": "v1",
    "gate_highest_wer": 1000.0,
    "train_overrides": {
        "optimizer.scales": {},
        "precision": "float32",
        "batches": {"padded_seconds": 16, "workers": 0},
    },
}


@pytest.mark.parametrize("replacement", [indented_print, local_logger_context])
def test_steps_that_overlap_leave_print_and_logs_as_they_were(
    replacement: Callable[[], AbstractContextManager[None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = logging.getLogger()

    def output() -> tuple[object, ...]:
        return builtins.print, root.level, *root.handlers

    def overlapping(**_: object) -> None:
        first, second = replacement(), replacement()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert output() != former  # kfp's fault is still there

    former = output()
    monkeypatch.setattr(builtins, "print", builtins.print)  # put back whatever happens
    monkeypatch.setattr(root, "handlers", root.handlers[:])
    monkeypatch.setattr(local, "_once", lambda: overlapping)
    Runner(StoreConfig(url=str(tmp_path)), tmp_path, False, {}).run({})
    assert output() == former


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_first_run_deploys_and_the_same_again_is_cached_and_refused(
    s3: StoreConfig,
    server: S3Server,
    webhook: tuple[str, list[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STENO_WEBHOOK", webhook[0])
    client = server.client()
    prefix = s3.prefix.strip("/") + "-speech"
    for path in FIXTURES.iterdir():
        client.upload_file(str(path), BUCKET, f"{prefix}/{path.name}")
    # A part holds a thousand recordings, but never those of two manifests: here there are two parts.
    lines = (FIXTURES / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    for name, some in (("manifest.jsonl", lines[:4]), ("test.jsonl", lines[4:])):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=b"".join(some))
    models = ModelStore.open(s3)
    archive = build_package(make_random_checkpoint(tmp_path / "random"), tmp_path / "mar").path
    models.publish(archive, version="v1", metrics={}, data_fingerprint="f", commit="c")
    parameters = {
        **TINY,
        "data_manifest": f"s3://{BUCKET}/{prefix}/manifest.jsonl",
        "data_test_manifest": f"s3://{BUCKET}/{prefix}/test.jsonl",
    }

    with local_session(s3, tmp_path / "runs") as (release, runner):
        runner.run(parameters)
        current = models.production()
        assert current is not None and current.version == "v2"
        made = models.release("v2")
        assert made.parent == "v1" and len(made.data_fingerprint) == 64
        endpoint = release.take_up("v2")
        text = endpoint.transcribe(FIXTURES / "short.wav")  # of random weights, but the same again
        first = capfd.readouterr().out
        assert "v2 is in production and wrote" in first
        assert "v2 is in production and wrote" in json.loads(webhook[1][-1])["text"]
        # Random weights write no right word, and a run must not end of that.
        assert "confidences are not calibrated" in first

        runner.run(parameters)
        second = capfd.readouterr().out
        assert models.versions() == ["v1", "v2"]
        assert models.production() == current
        assert "Not deployed: WER lower by the margin: no" in second
        # Training prints its epochs; a step that is taken over from the cache prints nothing.
        assert "epoch 1:" in first and "epoch 1:" not in second
        assert first.count("recordings accepted") == 2 and "recordings accepted" not in second

        # An archive that no server can load is taken back, and the one before serves all the time.
        (tmp_path / "broken.mar").write_bytes(b"no archive")
        models.publish(
            tmp_path / "broken.mar", version="v3", metrics={}, data_fingerprint="f", commit="c"
        )
        probe = Probe(recording="short.wav", text=text)
        (tmp_path / "short.wav").write_bytes((FIXTURES / "short.wav").read_bytes())
        (tmp_path / PROBE).write_text(probe.model_dump_json())
        outcome = roll_out(models, release, "v3", "v2", tmp_path, lambda outcome: None)
        assert (outcome.state, outcome.serves) == ("rolled back", "v2")
        assert endpoint.transcribe(FIXTURES / "short.wav") == text
        capfd.readouterr()

        with pytest.raises(RunFailed):
            runner.run({**parameters, "data_manifest": f"s3://{BUCKET}/{prefix}/none.jsonl"})
        third = capfd.readouterr().out
        assert "there is no s3://" in third and "The run failed" in third

    runs = {key.split("/")[1] for key in models.objects.keys("runs/")} - {"training"}
    texts = [[*notes(models.objects, run)] for run in runs]
    assert sorted(map(len, texts), reverse=True)[0] == 5
