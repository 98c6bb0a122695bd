"""Training on several nodes: the TrainJob that is made, and what is made of its end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kfp_pipelines.fit import FitError, FitTask, fit_on_nodes, read_task
from kfp_pipelines.train_job import TrainJobError, Value, manifest, run_train_job
from kfp_pipelines.training_state import KeptRun
from store import StoreConfig, open_objects
from tests.helm.crds import crd_problems
from tests.kfp_pipelines.kubernetes_api import KubernetesApi

VALUES: dict[str, Value] = {
    "NAME": "steno-1",
    "IMAGE": "registry.example/train:7",
    "NODES": 2,
    "GPUS": 8,
    "NODE_SELECTOR": {"accelerator": "h100"},
    "STORE": "s3://models",
    "TASK": "runs/training/1.json",
    "COMMIT": "40d53ea",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    with KubernetesApi() as api:
        path = tmp_path / "kubeconfig"
        api.write_kubeconfig(path)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
        yield api


def make_task(store: StoreConfig) -> FitTask:
    return FitTask(
        store=store, prepared={}, start="v1", recipe="finetune", processes=16, commit="40d53ea"
    )


def test_every_place_of_the_manifest_is_filled() -> None:
    job = manifest(VALUES)
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 8)
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == 8
    assert trainer["args"] == [
        *("--store", "s3://models", "--task", "runs/training/1.json", "--work", "/tmp/steno")
    ]
    (patch,) = job["spec"]["runtimePatches"]
    (nodes,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert nodes["template"]["spec"]["template"]["spec"]["nodeSelector"] == {"accelerator": "h100"}
    with pytest.raises(TrainJobError, match=r"trainjob.yaml needs GPUS"):
        manifest({name: value for name, value in VALUES.items() if name != "GPUS"})


def test_the_job_is_what_kubeflow_trainer_knows() -> None:
    job = manifest(VALUES)
    assert job["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert crd_problems(job) == []
    for careless in ({"numnodes": 2}, {"numNodes": "2"}, {"env": [{"nam": "A"}]}):
        trainer = {**job["spec"]["trainer"], **careless}
        assert crd_problems({**job, "spec": {**job["spec"], "trainer": trainer}}) != []


def test_a_job_is_made_once_and_waited_for_by_every_attempt(cluster: KubernetesApi) -> None:
    run_train_job(VALUES, poll=0.01)
    run_train_job(VALUES, poll=0.01)
    assert list(cluster.jobs) == ["steno-1"]


def test_a_job_that_failed_is_told_and_makes_way_for_another(cluster: KubernetesApi) -> None:
    cluster.job_condition = {"type": "Failed", "status": "True", "message": "a node was lost"}
    with pytest.raises(TrainJobError, match="TrainJob steno-1 failed: a node was lost"):
        run_train_job(VALUES, poll=0.01)
    assert not cluster.jobs


def test_what_the_nodes_left_in_the_store_is_the_run(
    cluster: KubernetesApi, store: StoreConfig, tmp_path: Path
) -> None:
    task = make_task(store)
    with pytest.raises(FitError, match="ended without a finished run"):
        fit_on_nodes(task, tmp_path / "work", 2, "image", {})
    (job,) = cluster.jobs.values()
    key = job["spec"]["trainer"]["args"][3]
    assert read_task(store.url, key) == task

    run = tmp_path / "node" / "run"
    run.mkdir(parents=True)
    (run / "log.jsonl").write_text("{}\n")
    KeptRun(open_objects(store), task.key, run).finish()
    found = fit_on_nodes(task, tmp_path / "work", 2, "image", {})
    assert (found / "log.jsonl").read_text() == "{}\n"
