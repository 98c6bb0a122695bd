"""A Deployment's pods are replaced, and waited for until the last is ready."""

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kfp_pipelines.kubernetes_serving import ANNOTATION, KubernetesServing
from kfp_pipelines.rollout import ServingError
from tests.kfp_pipelines.kubernetes_api import TOKEN, KubernetesApi


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    with KubernetesApi() as api:
        api.write_kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setattr(
            "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION",
            str(tmp_path / "kubeconfig"),
        )
        yield api


def serving(deployment: str = "steno", timeout: float = 20.0) -> KubernetesServing:
    url = "http://127.0.0.1:9/predictions/asr"  # nobody is there
    return KubernetesServing("speech", deployment, url, timeout, poll=0.01)


def test_pods_are_replaced_and_waited_for(
    cluster: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STENO_TOKEN", "endpoint-token")
    endpoint = serving().take_up("v7")
    assert cluster.annotations[ANNOTATION] == "v7"
    assert cluster.ready == cluster.replicas
    assert endpoint.headers == {"Authorization": "Bearer endpoint-token"}


def test_the_same_version_again_replaces_the_pods_again(cluster: KubernetesApi) -> None:
    serving().take_up("v7")
    first = dict(cluster.annotations)
    serving().take_up("v7")
    assert cluster.annotations != first


def test_a_release_that_is_scaled_to_zero_cannot_be_rolled_out_on(cluster: KubernetesApi) -> None:
    """Nothing would answer the probe."""
    serving().require_pods()
    cluster.replicas = 0
    with pytest.raises(ServingError, match=r"scaled to zero\. Set autoscaling.minReplicas to 1"):
        serving().require_pods()


@pytest.mark.parametrize(("token", "opens"), [("former-token", False), ("endpoint-token", True)])
def test_a_token_that_was_changed_is_told_before_a_version_is_tried(
    cluster: KubernetesApi, monkeypatch: pytest.MonkeyPatch, token: str, opens: bool
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            known = self.headers["Authorization"] == "Bearer endpoint-token"
            self.send_response(400 if known else 401)  # there is no recording
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("STENO_TOKEN", token)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        release = replace(serving(), url=f"http://127.0.0.1:{server.server_port}/predictions/asr")
        try:
            with nullcontext() if opens else pytest.raises(ServingError, match="answered 401: the"):
                release.require_pods()
        finally:
            server.shutdown()


def test_an_api_that_is_busy_is_asked_for_pods_again_as_they_are_waited_for(
    cluster: KubernetesApi,
) -> None:
    cluster.away, cluster.looks_away = 503, 1
    serving().require_pods()
    cluster.away, cluster.looks_away = 403, 1
    with pytest.raises(ServingError, match="pipeline-rbac"):
        serving().require_pods()


def test_pods_that_do_not_get_ready_are_an_error_with_the_clusters_reason(
    cluster: KubernetesApi,
) -> None:
    cluster.stuck = "ReplicaSet has timed out progressing."
    with pytest.raises(ServingError, match="ProgressDeadlineExceeded: ReplicaSet has timed out"):
        serving().take_up("v7")


@pytest.mark.parametrize("request_", ["GET", "PATCH"])
@pytest.mark.parametrize("status", [503, 429])
def test_an_api_that_is_away_or_busy_for_a_while_takes_no_version_back(
    cluster: KubernetesApi, status: int, request_: str
) -> None:
    cluster.away, cluster.looks_away, cluster.away_to = status, 5, {request_}
    serving().take_up("v7")
    assert cluster.looks_away == 0
    assert cluster.ready == cluster.replicas


def test_an_api_that_stays_away_is_told(cluster: KubernetesApi) -> None:
    cluster.looks_away = 10_000
    with pytest.raises(ServingError, match=r"not rolled out within 0 s: .* \(503\)"):
        serving(timeout=0.2).take_up("v7")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("", "may not patch it; k8s/pipeline-rbac.yaml allows it (403)"),
        ('deployments.apps "steno" is forbidden: User "x" cannot patch resource', "pipeline-rbac"),
        ('admission webhook "p" denied the request: no tag', 'webhook "p" denied the request: no'),
    ],
)
def test_who_refuses_says_why(cluster: KubernetesApi, message: str, shown: str) -> None:
    cluster.away, cluster.looks_away, cluster.away_to = 403, 1, {"PATCH"}
    cluster.away_message = message
    with pytest.raises(ServingError) as refused:
        serving().take_up("v7")
    assert shown in str(refused.value)
    assert cluster.looks_away == 0


def test_the_wait_has_an_end(cluster: KubernetesApi) -> None:
    cluster.replicas = 10_000
    with pytest.raises(ServingError, match=r"not rolled out within 0 s: \d+ of 10000 pods"):
        serving(timeout=0.2).take_up("v7")


def test_many_pods_may_take_longer_one_after_the_other(cluster: KubernetesApi) -> None:
    cluster.replicas, cluster.progress_deadline = 30, 1
    serving(timeout=0.1).take_up("v6")  # 30 looks, each after 10 ms and more
    assert cluster.ready == 30


def test_pods_that_are_pinned_to_another_version_are_told(cluster: KubernetesApi) -> None:
    cluster.pinned = "v6"
    serving().take_up("v6")
    with pytest.raises(ServingError, match=r"pinned to v6 \(the chart's model.version\)"):
        serving().take_up("v7")


def test_a_deployment_that_is_not_there_is_named(cluster: KubernetesApi) -> None:
    with pytest.raises(ServingError, match="Deployment speech/other: there is none; .*serving_"):
        serving("other").take_up("v7")


def test_a_refused_token_is_told_and_not_shown(cluster: KubernetesApi, tmp_path: Path) -> None:
    cluster.write_kubeconfig(tmp_path / "kubeconfig", token=f"old-{TOKEN}")
    with pytest.raises(ServingError, match="token is not accepted") as caught:
        serving().take_up("v7")
    assert TOKEN not in str(caught.value)
