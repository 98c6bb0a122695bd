"""Training on several nodes: the TrainJob that is made, and what is made of its end."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kfp_pipelines import fit
from kfp_pipelines.fit import FitError, FitTask, fit_on_nodes, read_task
from kfp_pipelines.train_job import Nodes, TrainJobError, Value, manifest, run_train_job
from kfp_pipelines.training_state import KeptRun
from store import StoreConfig, open_objects
from tests.helm.crds import crd_problems
from tests.kfp_pipelines.kubernetes_api import KubernetesApi

NODES = Nodes(
    count=2,
    selector={"accelerator": "h100"},
    gpus=8,
    cpus_per_gpu=4,
    memory_per_gpu="24Gi",
    scratch="300Gi",
)
VALUES: dict[str, Value] = {
    "NAME": "steno-1",
    "STORE": "s3://models",
    "TASK": "runs/training/1.json",
    "COMMIT": "40d53ea",
    "IMAGE": "registry.example/train:7",
    "ACCOUNT": "pipeline-runner",
    "NODES": 2,
    "NODE_SELECTOR": {"accelerator": "h100"},
    "GPUS": 8,
    "CPUS": "32",
    "MEMORY": "192Gi",
    "SCRATCH": "300Gi",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    with KubernetesApi() as api:
        path = tmp_path / "kubeconfig"
        api.write_kubeconfig(path)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
        monkeypatch.setenv("STENO_IMAGE", "registry.example/train:7")
        monkeypatch.setenv("STENO_SERVICE_ACCOUNT", "pipeline-runner")
        yield api


def make_task(store: StoreConfig) -> FitTask:
    return FitTask(
        store=store, prepared={}, start="v1", recipe="finetune", processes=16, commit="40d53ea"
    )


def finish(task: FitTask, folder: Path) -> None:
    """Leave in the store what the first node does at the end."""
    run = folder / "run"
    run.mkdir(parents=True)
    (run / "log.jsonl").write_text("{}\n")
    KeptRun(open_objects(task.store), task.key, run).finish()


def test_the_nodes_are_as_large_as_their_gpus_ask_and_as_the_step_that_makes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STENO_IMAGE", "registry.example/train:7")
    monkeypatch.setenv("STENO_SERVICE_ACCOUNT", "pipeline-runner")
    assert NODES.values.items() <= VALUES.items()
    monkeypatch.delenv("STENO_SERVICE_ACCOUNT")
    assert NODES.values["ACCOUNT"] == "default"


def test_every_place_of_the_manifest_is_filled() -> None:
    job = manifest(VALUES)
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 8)
    assert trainer["resourcesPerNode"]["requests"] == {
        "cpu": "32",
        "memory": "192Gi",
        "ephemeral-storage": "300Gi",
        "nvidia.com/gpu": 8,
    }
    assert trainer["resourcesPerNode"]["limits"] == {"memory": "192Gi", "nvidia.com/gpu": 8}
    assert trainer["args"] == [
        *("--store", "s3://models", "--task", "runs/training/1.json", "--work", "/tmp/steno")
    ]
    (patch,) = job["spec"]["runtimePatches"]
    (nodes,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = nodes["template"]["spec"]["template"]
    assert template["metadata"]["labels"] == {"sidecar.istio.io/inject": "false"}
    pod = template["spec"]
    assert pod["nodeSelector"] == {"accelerator": "h100"}
    assert pod["serviceAccountName"] == "pipeline-runner"
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
    assert run_train_job(VALUES, poll=0.01)
    assert not run_train_job(VALUES, poll=0.01)
    assert cluster.jobs_made == ["steno-1"]


def test_a_job_that_failed_is_told_and_makes_way_for_another(cluster: KubernetesApi) -> None:
    cluster.job_condition = {"type": "Failed", "status": "True", "message": "a node was lost"}
    cluster.looks_until_gone = 3
    with pytest.raises(TrainJobError, match="TrainJob steno-1 failed: a node was lost"):
        run_train_job(VALUES, poll=0.01)
    assert not cluster.jobs


@pytest.mark.parametrize("request_", ["GET", "POST"])
@pytest.mark.parametrize("status", [503, 429])
def test_an_api_that_is_away_or_busy_for_a_while_fails_no_training(
    cluster: KubernetesApi, status: int, request_: str
) -> None:
    cluster.away, cluster.looks_away, cluster.away_to = status, 5, {request_}
    run_train_job(VALUES, poll=0.01)
    assert cluster.looks_away == 0


def test_a_job_that_failed_is_deleted_as_soon_as_the_api_is_back(cluster: KubernetesApi) -> None:
    cluster.job_condition = {"type": "Failed", "status": "True", "message": "a node was lost"}
    cluster.away, cluster.looks_away, cluster.away_to = 503, 3, {"DELETE"}
    with pytest.raises(TrainJobError, match="TrainJob steno-1 failed: a node was lost"):
        run_train_job(VALUES, poll=0.01)
    assert not cluster.jobs


def test_an_api_that_refuses_is_no_api_that_is_away(cluster: KubernetesApi) -> None:
    cluster.away, cluster.looks_away = 403, 1
    with pytest.raises(TrainJobError, match=r"k8s/trainjob-rbac.yaml allows it \(403\)"):
        run_train_job(VALUES, poll=0.01)


def test_what_the_nodes_left_in_the_store_is_the_run(
    cluster: KubernetesApi, store: StoreConfig, tmp_path: Path
) -> None:
    task = make_task(store)
    with pytest.raises(FitError, match="ended without a finished run"):
        fit_on_nodes(task, tmp_path / "work", NODES)
    (job,) = cluster.jobs.values()
    key = job["spec"]["trainer"]["args"][3]
    assert read_task(store.url, key) == task

    finish(task, tmp_path / "node")
    found = fit_on_nodes(task, tmp_path / "work", NODES)
    assert (found / "log.jsonl").read_text() == "{}\n"
    assert len(cluster.jobs_made) == 1


def test_a_complete_job_whose_run_the_store_has_dropped_is_made_anew(
    cluster: KubernetesApi,
    store: StoreConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = make_task(store)
    name = f"steno-{task.name}"
    cluster.jobs[name] = {"metadata": {"name": name}}  # of a month ago
    cluster.looks_until_gone = 2

    def train(values: Mapping[str, Value], *, anew: bool = False) -> bool:
        made = run_train_job(values, anew=anew, poll=0.01)
        if anew:
            finish(task, tmp_path / "node")
        return made

    monkeypatch.setattr(fit, "run_train_job", train)
    found = fit_on_nodes(task, tmp_path / "work", NODES)
    assert (found / "log.jsonl").read_text() == "{}\n"
    assert cluster.jobs_made == [name]
