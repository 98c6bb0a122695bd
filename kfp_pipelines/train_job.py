"""Training on several nodes: a TrainJob of Kubeflow Trainer, made and waited for by the step Train."""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client
from pydantic import BaseModel, ConfigDict, Field

from kfp_pipelines import cluster
from kfp_pipelines.pods import size

MANIFEST = Path(__file__).resolve().parent.parent / "k8s" / "trainjob.yaml"
GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
PLACES = {
    *("NAME", "IMAGE", "ACCOUNT", "NODES", "NODE_SELECTOR", "GPUS", "CPUS", "MEMORY", "SCRATCH"),
    *("STORE", "TASK", "COMMIT"),
}
# Of the step that makes the job, and of its pods too: the image, and the service account, with which the
# right to the store comes where pods have a role. The pipeline sets both.
IMAGE, ACCOUNT = "STENO_IMAGE", "STENO_SERVICE_ACCOUNT"
Value = str | int | Mapping[str, str]
POLL_SECONDS = 15.0
# The API server may be away for a while, as when its node is renewed, and the job goes on without it.
PATIENCE_SECONDS = 900.0


class TrainJobError(RuntimeError):
    """The job could not be made, or failed."""


class Nodes(BaseModel):
    """Where to train: above one, a TrainJob has a pod on each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(ge=1)
    selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes."""
    gpus: int = Field(ge=1)
    """Of each node, where there are several."""
    cpus_per_gpu: int
    memory_per_gpu: str
    scratch: str
    """Disk that each pod needs."""

    @property
    def values(self) -> dict[str, Value]:
        """What fills their places in the manifest.

        Raises:
            PodError: a value is none that a pod can have.
        """
        pod = size(self.gpus, self.cpus_per_gpu, self.memory_per_gpu)
        return {
            "IMAGE": os.environ[IMAGE],
            "ACCOUNT": os.environ.get(ACCOUNT, "default"),
            "NODES": self.count,
            "NODE_SELECTOR": self.selector,
            "GPUS": self.gpus,
            "CPUS": pod.cpus,
            "MEMORY": pod.memory,
            "SCRATCH": self.scratch,
        }


def manifest(values: Mapping[str, Value]) -> dict[str, Any]:
    """The TrainJob with `values` in the places of the capitals.

    Raises:
        TrainJobError: a place was left unfilled.
    """
    missing = PLACES - set(values)
    if missing:
        raise TrainJobError(f"{MANIFEST.name} needs {', '.join(sorted(missing))}")
    found: dict[str, Any] = _filled(yaml.safe_load(MANIFEST.read_text(encoding="utf-8")), values)
    return found


def _filled(content: Any, values: Mapping[str, Value]) -> Any:
    if isinstance(content, dict):
        return {name: _filled(value, values) for name, value in content.items()}
    if isinstance(content, list):
        return [_filled(value, values) for value in content]
    return values.get(content, content) if isinstance(content, str) else content


def run_train_job(
    values: Mapping[str, Value], *, anew: bool = False, poll: float = POLL_SECONDS
) -> bool:
    """Make the job, or find the one of an earlier attempt, and return when it is complete.

    Args:
        anew: delete the one that is there.

    Returns:
        Whether the job was made here.

    Raises:
        TrainJobError: it failed, or the API refuses; the message holds the reason.
    """
    jobs = _Jobs(poll)
    name = str(values["NAME"])
    if anew:
        print(f"TrainJob {jobs.namespace}/{name} is made anew", flush=True)
        jobs.delete(name)
    made = jobs.make(manifest(values))
    if made:
        print(f"TrainJob {jobs.namespace}/{name} on {values['NODES']} nodes", flush=True)
    else:
        print(f"TrainJob {jobs.namespace}/{name} is there already; waiting for it", flush=True)
    jobs.wait(name)
    return made


class _Jobs:
    """The TrainJobs of this namespace."""

    def __init__(self, poll: float) -> None:
        self.poll = poll
        self.namespace = os.environ.get("STENO_NAMESPACE", "default")
        if cluster.connect():
            self.namespace = NAMESPACE.read_text(encoding="utf-8").strip()
        self._place = (GROUP, VERSION, self.namespace, PLURAL)
        self._api = client.CustomObjectsApi()

    def make(self, job: Mapping[str, Any]) -> bool:
        """Make a job; False if there is one of its name."""
        try:
            cluster.patiently(
                lambda: self._api.create_namespaced_custom_object(
                    *self._place, job, _request_timeout=cluster.REQUEST_SECONDS
                ),
                PATIENCE_SECONDS,
                self.poll,
            )
        except (client.ApiException, urllib3.exceptions.HTTPError) as error:
            if isinstance(error, client.ApiException) and error.status == 409:
                return False  # or an earlier request was heard after all
            raise TrainJobError(_refusal(error)) from None
        return True

    def wait(self, name: str) -> None:
        """Return when the job is complete."""
        for found in self._looks(name):
            if found is None:
                raise TrainJobError(f"TrainJob {name} is gone; who deleted it?")
            for condition in found.get("status", {}).get("conditions", []):
                if condition["status"] == "True" and condition["type"] == "Complete":
                    return
                if condition["status"] == "True" and condition["type"] == "Failed":
                    message = f"TrainJob {name} failed: {condition.get('message', '')}"
                    print(message, flush=True)
                    # Another attempt makes a new one, which goes on from the kept state.
                    self.delete(name)
                    raise TrainJobError(message)

    def delete(self, name: str) -> None:
        """Delete a job and return when it is gone with all its pods: the next one has its name."""
        try:
            cluster.patiently(
                lambda: self._api.delete_namespaced_custom_object(
                    *self._place,
                    name,
                    propagation_policy="Foreground",
                    _request_timeout=cluster.REQUEST_SECONDS,
                ),
                PATIENCE_SECONDS,
                self.poll,
            )
        except (client.ApiException, urllib3.exceptions.HTTPError) as error:
            if not isinstance(error, client.ApiException) or error.status != 404:
                raise TrainJobError(_refusal(error)) from None
        began = time.monotonic()
        for found in self._looks(name):
            if found is None:
                return
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise TrainJobError(f"TrainJob {name} was deleted and does not go")

    def _looks(self, name: str) -> Iterator[dict[str, Any] | None]:
        """The job as it is, look by look; None when there is none."""
        answered = time.monotonic()
        while True:
            try:
                found = self._api.get_namespaced_custom_object(
                    *self._place, name, _request_timeout=cluster.REQUEST_SECONDS
                )
            except (client.ApiException, urllib3.exceptions.HTTPError) as error:
                if isinstance(error, client.ApiException) and error.status == 404:
                    found = None
                elif cluster.passes(error) and time.monotonic() - answered < PATIENCE_SECONDS:
                    time.sleep(self.poll)
                    continue
                else:
                    raise TrainJobError(_refusal(error)) from None
            answered = time.monotonic()
            yield found
            time.sleep(self.poll)


def _refusal(error: client.ApiException | urllib3.exceptions.HTTPError) -> str:
    if not isinstance(error, client.ApiException):
        return f"TrainJob: the Kubernetes API is away ({type(error).__name__})"
    hints = {
        403: "the service account may not make TrainJobs; k8s/trainjob-rbac.yaml allows it",
        404: "Kubeflow Trainer 2 is not installed",
    }
    return f"TrainJob: {cluster.refusal(error, hints)}"
