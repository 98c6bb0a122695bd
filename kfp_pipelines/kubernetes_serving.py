"""A serving release on Kubernetes: a Deployment whose pods fetch what the pointer names."""

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import urllib3
from kubernetes import client, config

from kfp_pipelines import cluster
from kfp_pipelines.rollout import Endpoint, Serving, ServingError

ANNOTATION = "steno.dev/version"
RESTARTED = "steno.dev/restarted-at"
# Of the pods' init container, see handler/fetch.py.
PINNED = "STENO_VERSION"
TOKEN = "STENO_TOKEN"
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class KubernetesServing(Serving):
    """One Deployment and the address of its service.

    Attributes:
        namespace, deployment: which one.
        url: where recordings are posted; the token comes from STENO_TOKEN.
        timeout: seconds that a new version may take until all pods are ready; more if the Deployment has
            so many that each may use up its `progressDeadlineSeconds`.
        poll: seconds between looks.
    """

    namespace: str
    deployment: str
    url: str
    timeout: float = 1800.0
    poll: float = POLL_SECONDS

    def require_pods(self) -> None:
        """Raises ServingError for a release that is scaled to zero, which no call of ours wakes, and for
        one that does not take our token.
        """
        what = f"Deployment {self.namespace}/{self.deployment}"
        try:
            found = _api().read_namespaced_deployment(
                self.deployment, self.namespace, _request_timeout=cluster.REQUEST_SECONDS
            )
        except (client.ApiException, urllib3.exceptions.HTTPError) as error:
            if cluster.passes(error):
                return  # who waits for the pods has more patience
            raise _problem(what, error) from None
        if found.spec.replicas == 0:
            raise ServingError(
                f"{what} is scaled to zero. Set autoscaling.minReplicas to 1 for the run, and repeat "
                "this step"
            )
        self._endpoint().require_token()

    def take_up(self, version: str) -> Endpoint:
        """Replace the pods, as `kubectl rollout restart` does, and wait until all are ready.

        Raises:
            ServingError: also for a release whose pods are pinned to another version.
        """
        api = _api()
        what = f"Deployment {self.namespace}/{self.deployment}"
        annotations = {ANNOTATION: version, RESTARTED: datetime.now(UTC).isoformat()}
        body = {"spec": {"template": {"metadata": {"annotations": annotations}}}}
        try:
            # The same again if it was heard after all.
            patched = cluster.patiently(
                lambda: api.patch_namespaced_deployment(
                    self.deployment, self.namespace, body, _request_timeout=cluster.REQUEST_SECONDS
                ),
                self.timeout,
                self.poll,
            )
        except (client.ApiException, urllib3.exceptions.HTTPError) as error:
            raise _problem(what, error) from None
        pinned = _pinned_version(patched)
        if pinned not in (None, version):
            raise ServingError(
                f"{what} is pinned to {pinned} (the chart's model.version) and does not follow the"
                " pointer; a release that the pipeline rolls out on must not be"
            )
        self._wait(api, patched.metadata.generation)
        return self._endpoint()

    def _endpoint(self) -> Endpoint:
        token = os.environ.get(TOKEN)
        return Endpoint(self.url, {"Authorization": f"Bearer {token}"} if token else {})

    def _wait(self, api: client.AppsV1Api, generation: int) -> None:
        start = time.monotonic()
        timeout = self.timeout
        what = f"Deployment {self.namespace}/{self.deployment}"
        state = "was not looked at yet"
        while time.monotonic() - start < timeout:
            try:
                found = api.read_namespaced_deployment(
                    self.deployment, self.namespace, _request_timeout=cluster.REQUEST_SECONDS
                )
            except (client.ApiException, urllib3.exceptions.HTTPError) as error:
                problem = _problem(what, error)
                if not cluster.passes(error):
                    raise problem from None
                state = str(problem)  # pods go on without the API
                time.sleep(self.poll)
                continue
            if (found.status.observed_generation or 0) >= generation:
                for condition in found.status.conditions or []:
                    if condition.type == "Progressing" and condition.status == "False":
                        raise ServingError(f"{what}: {condition.reason}: {condition.message}")
                state = _state(found)
                if _is_rolled_out(found):
                    return
                # Pods are replaced one by one, and whether they still are is for the condition to say.
                for_each = found.spec.progress_deadline_seconds or 0
                timeout = max(self.timeout, for_each * (found.spec.replicas or 0))
            time.sleep(self.poll)
        raise ServingError(f"{what} was not rolled out within {timeout:.0f} s: {state}")


def _pinned_version(deployment: Any) -> str | None:
    """The version that the pods fetch whatever the pointer says; None if they follow it."""
    for container in deployment.spec.template.spec.init_containers or []:
        for variable in container.env or []:
            if variable.name == PINNED and variable.value:
                return str(variable.value)
    return None


def _is_rolled_out(deployment: Any) -> bool:
    """As `kubectl rollout status` tells it."""
    wanted = deployment.spec.replicas if deployment.spec.replicas is not None else 1
    status = deployment.status
    return bool(
        (status.updated_replicas or 0) == wanted
        and (status.replicas or 0) == wanted
        and (status.available_replicas or 0) == wanted
    )


def _state(deployment: Any) -> str:
    status = deployment.status
    return (
        f"{status.updated_replicas or 0} of {deployment.spec.replicas} pods have the new version,"
        f" {status.available_replicas or 0} are ready, {status.replicas or 0} are there"
    )


def _api() -> client.AppsV1Api:
    try:
        cluster.connect()
    except config.ConfigException as error:
        raise ServingError(f"there is no cluster to roll out on: {error}") from None
    return client.AppsV1Api()


def _problem(what: str, error: client.ApiException | urllib3.exceptions.HTTPError) -> ServingError:
    """The client's errors in our words."""
    if isinstance(error, client.ApiException):
        hints = {
            401: "the service account's token is not accepted",
            403: "the service account may not patch it; k8s/pipeline-rbac.yaml allows it",
            404: "there is none; serving_namespace and serving_deployment name it",
        }
        return ServingError(f"{what}: {cluster.refusal(error, hints)}")
    return ServingError(f"{what}: the Kubernetes API cannot be reached ({type(error).__name__})")
