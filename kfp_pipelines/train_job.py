"""Training on several nodes: a TrainJob of Kubeflow Trainer, made and waited for by the step Train."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config

MANIFEST = Path(__file__).resolve().parent.parent / "k8s" / "trainjob.yaml"
GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
PLACES = {"NAME", "IMAGE", "NODES", "GPUS", "NODE_SELECTOR", "STORE", "TASK", "COMMIT"}
Value = str | int | Mapping[str, str]
POLL_SECONDS = 15.0
REQUEST_SECONDS = 30
# The API server may be away for a while, as when its node is renewed, and the job goes on without it.
PATIENCE_SECONDS = 900.0


class TrainJobError(RuntimeError):
    """The job could not be made, or failed."""


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


def run_train_job(values: Mapping[str, Value], poll: float = POLL_SECONDS) -> None:
    """Make the job, or find the one of an earlier attempt, and return when it is complete.

    Raises:
        TrainJobError: it failed, or the API refuses; the message holds the reason.
    """
    try:
        config.load_incluster_config()
        namespace = NAMESPACE.read_text(encoding="utf-8").strip()
    except config.ConfigException:
        config.load_kube_config()
        namespace = os.environ.get("STENO_NAMESPACE", "default")
    api = client.CustomObjectsApi()
    name = str(values["NAME"])
    place = (GROUP, VERSION, namespace, PLURAL)
    try:
        api.create_namespaced_custom_object(
            *place, manifest(values), _request_timeout=REQUEST_SECONDS
        )
        print(f"TrainJob {namespace}/{name} on {values['NODES']} nodes", flush=True)
    except client.ApiException as error:
        if error.status != 409:
            raise TrainJobError(_refusal(error)) from None
        print(f"TrainJob {namespace}/{name} is there already; waiting for it", flush=True)
    answered = time.monotonic()
    while True:
        try:
            found = api.get_namespaced_custom_object(*place, name, _request_timeout=REQUEST_SECONDS)
            answered = time.monotonic()
        except client.ApiException as error:
            if error.status < 500 or time.monotonic() - answered > PATIENCE_SECONDS:
                raise TrainJobError(_refusal(error)) from None
            found = {}
        except urllib3.exceptions.HTTPError as error:
            if time.monotonic() - answered > PATIENCE_SECONDS:
                raise TrainJobError(
                    f"the Kubernetes API is away ({type(error).__name__})"
                ) from None
            found = {}
        for condition in found.get("status", {}).get("conditions", []):
            if condition["status"] == "True" and condition["type"] == "Complete":
                return
            if condition["status"] == "True" and condition["type"] == "Failed":
                # Another attempt makes a new one, which goes on from the kept state.
                api.delete_namespaced_custom_object(*place, name, _request_timeout=REQUEST_SECONDS)
                raise TrainJobError(f"TrainJob {name} failed: {condition.get('message', '')}")
        time.sleep(poll)


def _refusal(error: client.ApiException) -> str:
    hints = {
        403: "the service account may not make TrainJobs; k8s/trainjob-rbac.yaml allows it",
        404: "Kubeflow Trainer 2 is not installed, or the job was deleted",
    }
    return f"TrainJob: {hints.get(error.status, error.reason)} ({error.status})"
