"""A training that is killed anywhere goes on from what the store keeps."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.api import PContext

from kfp_pipelines import fit as module
from kfp_pipelines import pods, torchrun
from kfp_pipelines.data import ARCHIVES, list_speech, prepare_shard, shard_names, write_archives
from kfp_pipelines.fit import FitError, FitTask, fetch_checkpoint
from kfp_pipelines.pods import PodError
from kfp_pipelines.train_job import MANIFEST
from kfp_pipelines.training_state import KeptRun
from store import ModelStore, NotFound, StoreConfig, Unavailable, open_objects
from tests.processes import started
from tests.random_checkpoint import make_random_checkpoint
from training.package import build_package
from training.prepare import Criteria
from training.shards import join

FIXTURES = Path(__file__).parents[1] / "fixtures" / "manifest.jsonl"
# One thread adds up in one order: two runs can be equal to the bit.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
OVERRIDES = {
    "epochs": 3,
    "precision": "float32",
    "save_every": 1,
    "batches": {"padded_seconds": 12, "workers": 0},
    "optimizer": {"learning_rate": 1e-3, "scales": {"ctc.": 2}, "warmup_steps": 2},
}


def make_task(store: StoreConfig, folder: Path, **overrides: object) -> FitTask:
    """Publish a random network as v1, prepare the fixtures, and say how to train on them."""
    objects = open_objects(store)
    checkpoint = make_random_checkpoint(folder / "random")
    archive = build_package(checkpoint, folder / "mar").path
    ModelStore.open(store).publish(
        archive, version="v1", metrics={}, data_fingerprint="f", commit="c"
    )
    listing = list_speech(objects, str(FIXTURES), "", store)
    (name,) = shard_names(listing, 1)
    shard = prepare_shard(objects, name, Criteria(), 1, store)
    prepared = folder / "prepared"
    prepared.mkdir()
    split = {"train": 0.6, "dev": 0.1, "test": 0.3}
    join(listing, [shard], prepared, split=split, seed=0, criteria=Criteria())
    write_archives(prepared / ARCHIVES, listing, [shard])
    names = ("train.jsonl", "dev.jsonl", ARCHIVES)
    return FitTask(
        store=store,
        prepared={name: (prepared / name).read_text() for name in names},
        start="v1",
        recipe="finetune",
        overrides={**OVERRIDES, **overrides},
        commit="40d53ea",
    )


def command(task: FitTask, work: Path) -> list[str]:
    work.mkdir(exist_ok=True)
    (work / "given.json").write_text(task.model_dump_json())
    given = ["--task", str(work / "given.json"), "--work", str(work)]
    return [sys.executable, "-m", "kfp_pipelines.fit", *given]


def wait_for_kept(task: FitTask, process: subprocess.Popen[bytes]) -> None:
    """Return when the store has a state of the run."""
    objects = open_objects(task.store)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        if task.key in objects.keys("runs/training/"):
            return
        time.sleep(0.02)
    raise AssertionError("no state was kept")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_step_that_was_killed_resumes_elsewhere_to_the_same_weights(
    s3: StoreConfig, tmp_path: Path, number: signal.Signals
) -> None:
    task = make_task(s3, tmp_path)
    (tmp_path / "again").mkdir()
    unbroken = make_task(StoreConfig(url=f"{s3.url}-unbroken"), tmp_path / "again")
    other = subprocess.Popen(
        command(unbroken, tmp_path / "unbroken"), env={**os.environ, **ONE_THREAD}
    )
    work = tmp_path / "work"
    process = subprocess.Popen(
        command(task, work), env={**os.environ, **ONE_THREAD}, start_new_session=True
    )
    try:
        wait_for_kept(task, process)
        if number == signal.SIGTERM:
            process.send_signal(number)  # as Kubernetes does; the training hears of it
            assert process.wait(60) == module.STOPPED
        else:
            os.killpg(process.pid, number)  # as a node that is lost
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.rmtree(work)
    work = tmp_path / "another disk"  # of the next attempt
    subprocess.run(command(task, work), check=True, env={**os.environ, **ONE_THREAD})
    assert other.wait(300) == 0
    runs = [tmp_path / "unbroken" / "run", work / "run"]
    whole, resumed = (load_file(run / "last" / "model.safetensors") for run in runs)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    expected, steps = (
        [json.loads(line)["step"] for line in (run / "log.jsonl").open()] for run in runs
    )
    assert steps == expected  # each step once


@pytest.mark.slow
def test_several_processes_fit_on_texts_that_were_punctuated_once(
    store: StoreConfig, tmp_path: Path
) -> None:
    task = make_task(store, tmp_path).model_copy(update={"processes": 2, "punctuate": True})
    given = command(task, tmp_path / "work")
    ranks: set[str] = set()
    with started(given, env={**os.environ, **ONE_THREAD}) as (process,):
        while process.poll() is None:
            with suppress(psutil.Error):  # one that has just ended
                family = psutil.Process(process.pid).children(recursive=True)
                ranks |= {child.environ()["RANK"] for child in family if "RANK" in child.environ()}
            time.sleep(0.2)
    assert (process.returncode, ranks) == (0, {"0", "1"})
    kept = KeptRun(open_objects(store), task.key, tmp_path / "elsewhere" / "run")
    assert kept.fetch() and kept.finished
    lines = [json.loads(line) for line in (kept.folder / "log.jsonl").open()]
    clips = len(task.prepared["train.jsonl"].splitlines())
    assert {line["kind"] for line in lines} >= {"train", "dev"}
    written = open_objects(store).read(task.key.replace(".tar", ".written.jsonl")).data
    assert len(written.splitlines()) == clips


def test_a_finished_run_is_not_done_again(
    store: StoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = FitTask(store=store, prepared={}, start="v1", recipe="finetune", commit="c")
    run = tmp_path / "elsewhere" / "run"
    (run / "best").mkdir(parents=True)
    (run / "best" / "model.safetensors").write_bytes(b"weights")
    KeptRun(open_objects(store), task.key, run).finish()
    monkeypatch.setattr(module, "_run", lambda command: pytest.fail("it trains"))
    found = module.fit(task, tmp_path / "here")
    assert (found / "best" / "model.safetensors").read_bytes() == b"weights"


def test_of_snapshots_that_wait_the_newest_is_sent_whole(
    store: StoreConfig, tmp_path: Path
) -> None:
    run, objects = tmp_path / "run", open_objects(store)
    (run / "best").mkdir(parents=True)
    kept = KeptRun(objects, "runs/training/a.tar", run)
    for number in range(5):
        for name in ("state.pt", "best/model.safetensors"):
            (run / "new").write_text(str(number))
            (run / "new").replace(run / name)
        kept.save(run)
    kept.start()
    kept.stop()
    other = KeptRun(objects, "runs/training/a.tar", tmp_path / "other" / "run")
    assert other.fetch() and not other.finished
    assert (other.folder / "state.pt").read_text() == "4"
    assert (other.folder / "best" / "model.safetensors").read_text() == "4"
    assert [path.name for path in tmp_path.glob("snapshot-*")] == []


def test_a_store_that_is_away_does_not_stop_the_training_but_is_told_at_the_end(
    store: StoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = open_objects(store)

    def refuse(path: Path, key: str, *, create: bool = False) -> str:
        raise Unavailable("no answer")

    monkeypatch.setattr(objects, "upload", refuse)
    run = tmp_path / "run"
    run.mkdir()
    kept = KeptRun(objects, "runs/training/a.tar", run)
    kept.start()
    kept.save(run)
    with pytest.raises(Unavailable, match="no answer"):
        kept.stop()


def key(**values: object) -> str:
    given = {"store": StoreConfig(url="models"), "recipe": "finetune", "start": "v1", "commit": "c"}
    return FitTask(**{**given, "prepared": {"train.jsonl": "a"}, **values}).key


def test_other_data_settings_or_code_are_another_run() -> None:
    keys = {
        key(),
        key(prepared={"train.jsonl": "b"}),
        key(start="v2"),
        key(recipe="base"),
        key(commit="d"),
        key(code="e"),
        key(overrides={"epochs": 2}),
        key(punctuate=True),
        key(processes=2),
    }
    assert len(keys) == 9
    assert key() == key()


def test_where_a_training_runs_and_how_its_settings_are_told_does_not_name_it() -> None:
    assert key(processes=1 * 8) == key(processes=2 * 4)
    assert key(store=StoreConfig(url="elsewhere")) == key()
    nested = key(overrides={"batches": {"workers": 3}})
    assert key(overrides={"batches.workers": 3}) == nested != key()
    assert key(overrides={"epochs": 5}) == key()  # as the recipe says


def test_another_recipe_under_the_same_name_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "finetune.yaml"
    shutil.copyfile(module.RECIPES / recipe.name, recipe)
    before = key()
    monkeypatch.setattr(module, "RECIPES", tmp_path)
    assert key() == before
    recipe.write_text(recipe.read_text().replace("ctc.: 5", "ctc.: 6"))
    assert key() != before


def test_other_sources_or_shipped_weights_are_another_run_whatever_the_commit_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("model/network.py", "training/losses.py", "kfp_pipelines/fit.py")
    weights = "model/shipped/model.safetensors"
    for name in (*names, weights):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as it was")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    keys = [key(start="shipped", commit="unknown")]
    for name in (*names, weights):
        (tmp_path / name).write_text("changed")
        keys.append(key(start="shipped", commit="unknown"))
    (tmp_path / "training" / "new.py").touch()
    keys.append(key(start="shipped", commit="unknown"))
    assert len(set(keys)) == len(keys) == 6
    before = key(start="v1")
    (tmp_path / weights).write_text("changed again")
    assert key(start="v1") == before


def test_the_pods_of_a_train_job_take_over_its_name(store: StoreConfig) -> None:
    task = FitTask(store=store, prepared={}, start="v1", recipe="finetune", commit="c", code="old")
    read = module.read_task(store.url, task.keep())
    assert (read, read.key) == (task, task.key)


def test_a_pod_of_a_train_job_that_lacks_gpus_trains_nothing(
    store: StoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.setenv("PET_NPROC_PER_NODE", "8")
    monkeypatch.setattr(pods, "gpus", lambda: 0)
    task = FitTask(
        store=store, prepared={}, start="v1", recipe="finetune", commit="c", processes=16
    )
    with pytest.raises(PodError, match="asked for 8 GPUs and torch sees 0"):
        module.fit(task, tmp_path / "work")


def test_torchrun_gives_its_processes_the_time_that_a_pod_has() -> None:
    """It has no option for that: should it lose the default of 30 s, this tells."""
    assert inspect.signature(PContext.close).parameters["timeout"].default == 30
    former = PContext.close.__defaults__
    try:
        torchrun.be_patient()
        assert inspect.signature(PContext.close).parameters["timeout"].default == torchrun.SECONDS
    finally:
        PContext.close.__defaults__ = former
    (patch,) = yaml.safe_load(MANIFEST.read_text())["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > torchrun.SECONDS


def test_overrides_reach_into_the_recipe(store: StoreConfig, tmp_path: Path) -> None:
    task = FitTask(
        store=store,
        prepared={},
        start="v1",
        recipe="finetune",
        overrides={"epochs": 2, "optimizer.learning_rate": 1e-6, "batches": {"workers": 0}},
        commit="c",
    )
    config = task.config(tmp_path)
    assert (config.epochs, config.optimizer.learning_rate, config.batches.workers) == (2, 1e-6, 0)
    assert config.optimizer.warmup_steps == 50  # the recipe's


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipe": "finetun"}, "no recipe 'finetun'; there are base, base_2, base_3, finetune"),
        ({"overrides": {"epoch": 2}}, "epoch: Extra inputs are not permitted"),
        ({"overrides": {"optimizer.learning_rate": -1}}, "optimizer.learning_rate: Input should"),
    ],
)
def test_settings_that_are_wrong_end_it_before_anything_is_fetched(
    store: StoreConfig, tmp_path: Path, values: dict[str, object], message: str
) -> None:
    task = FitTask(
        **{"store": store, "prepared": {}, "start": "v1", "recipe": "finetune", "commit": "c"}
        | values
    )
    with pytest.raises(FitError, match=message):
        module.fit(task, tmp_path / "work")


def test_the_start_is_the_checkpoint_of_a_published_version(
    store: StoreConfig, tmp_path: Path
) -> None:
    checkpoint = make_random_checkpoint(tmp_path / "random")
    archive = build_package(checkpoint, tmp_path / "mar").path
    models = ModelStore.open(store)
    models.publish(archive, version="v1", metrics={}, data_fingerprint="f", commit="c")
    found = fetch_checkpoint(models, "v1", tmp_path / "start")
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {
        path.name: path.read_bytes() for path in checkpoint.iterdir()
    }
    with pytest.raises(NotFound, match="no version v2"):
        fetch_checkpoint(models, "v2", tmp_path / "start")
