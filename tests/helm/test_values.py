"""What the chart refuses, in which words, and how its values are documented."""

from typing import Any

import helm_python as helm
import pytest
import yaml

from helm.values_reference import REFERENCE, VALUES, document, entries
from tests.helm.chart import CHART, REQUIRED, chart, merged, notes, of_kind, render, values_of


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replica": 2}, "replica"),
        ({"server": {"batchsize": 2}}, "batchsize"),
        ({"server": {"handler": {"max_audio_second": 2}}}, "max_audio_second"),
        ({"image": {"tag": "latest"}}, "tag"),
        ({"fullnameOverride": "speech.v2"}, "fullnameOverride"),
        ({"nameOverride": "asr.v2"}, "nameOverride"),
        ({"image": {"digest": "sha256:12"}}, "digest"),
        ({"model": {"store": "https://models"}}, "store"),
        ({"model": {"endpoint": "https://me:password@host"}}, "endpoint"),
        ({"resources": {"limits": {"memory": None}}}, "memory"),
        ({"autoscaling": {"by": "both"}}, "by"),
        ({"autoscaling": {"queuePerWorker": 0}}, "queuePerWorker"),
        ({"canary": {"weight": 101}}, "weight"),
        ({"monitoring": {"rules": {"latencySeconds": 3}}}, "latencySeconds"),
        ({"monitoring": {"rules": {"latencyObjective": 90}}}, "latencyObjective"),
        ({"drain": {"timeoutSeconds": "600s"}}, "timeoutSeconds"),
        ({"networkPolicy": {"from": [{}]}}, "from"),
        ({"service": {"grpc": {"port": 0}}}, "port"),
        ({"gateway": {"parentRefs": [{"name": "public", "section": "https"}]}}, "section"),
        (
            {"limits": {"requestSeconds": 100_000}},
            "requestSeconds",
        ),  # the Gateway API takes 5 digits
    ],
)
def test_a_value_that_is_unknown_or_impossible_is_named(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(helm.HelmError, match=message):
        render(merged(REQUIRED, values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": {"repository": ""}}, "image.repository is empty"),
        ({"model": {"store": ""}}, "model.store is empty"),
        # Names that another release has beside its own.
        ({"fullnameOverride": "steno-canary"}, "those of the release steno end in -canary"),
        ({"fullnameOverride": "steno-metrics"}, "those of the release steno end in -metrics"),
        ({"fullnameOverride": "steno-helm-test"}, "of the release steno end in -helm-test"),
        ({"model": {"claim": "store"}}, "model.store and model.claim are both set"),
        ({"auth": {"existingSecret": ""}}, "auth.existingSecret is empty"),
        ({"service": {"grpc": {"enabled": True}}}, "cannot show a token. Set auth.enabled=false"),
        (
            {"auth": {"enabled": False}, "service": {"port": 7070, "grpc": {"enabled": True}}},
            "service.port and service.grpc.port are both 7070",
        ),
        ({"rollout": {"maxSurge": 0}}, "are both 0"),
        ({"autoscaling": {"by": "hpa", "minReplicas": 9}}, "minReplicas is 9 and maxReplicas 8"),
        ({"autoscaling": {"by": "hpa", "minReplicas": 0}}, "only KEDA scales to zero"),
        ({"autoscaling": {"by": "keda", "minReplicas": 0}}, "activationQuery is empty"),
        ({"autoscaling": {"by": "keda", "cpuUtilization": 50}}, "are for autoscaling.by=hpa"),
        ({"autoscaling": {"by": "hpa", "gpuUtilization": 50}}, "gpu.count is 0"),
        (
            {
                "autoscaling": {"by": "hpa", "gpuUtilization": 50},
                "gpu": {"count": 1, "resource": "nvidia.com/mig-1g.10gb"},
            },
            "gpuUtilization is set and gpu.resource nvidia.com/mig-1g.10gb",
        ),
        (
            {"server": {"jobQueueSize": 26}},
            "jobQueueSize is 26 and resources.limits.memory 4Gi: .* holds 25 waiting requests",
        ),
        (
            {"autoscaling": {"by": "hpa"}, "server": {"workers": 2, "jobQueueSize": 15}},
            "queuePerWorker is 4 with 2 workers in a pod whose queue takes 15",
        ),
        (
            {"autoscaling": {"by": "keda"}},
            "autoscaling.by is keda and monitoring.serviceMonitor.enabled false",
        ),
        ({"canary": {"enabled": True, "weight": 0}}, "canary.version is empty"),
        ({"canary": {"enabled": True, "version": "v8"}}, "nothing divides the requests"),
        ({"ingress": {"enabled": True}}, "ingress.host is empty"),
        ({"gateway": {"enabled": True}}, "gateway.parentRefs is empty"),
        ({"certificate": {"enabled": True}}, "needs ingress.host and ingress.tlsSecret"),
        ({"server": {"handler": {"token_file": "/etc/passwd"}}}, "is the chart's to set"),
        (
            {"drain": {"propagationSeconds": 60, "timeoutSeconds": 60}},
            "drain.timeoutSeconds is 60 and propagationSeconds 60",
        ),
        ({"resources": {"requests": {"memory": "8Gi"}}}, "more memory than its limit"),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, "maxUnavailable is 0: no node"),
        (
            {"drain": {"timeoutSeconds": 1200}},
            "rollout.progressDeadlineSeconds is 1500: .* give at least 1830",
        ),
        (
            {"server": {"startupTimeout": 900}},
            "rollout.startupSeconds is 600 and server.startupTimeout 900",
        ),
        ({"rollout": {"startupSeconds": 300}}, "startupSeconds is 300 and .*startupTimeout 300"),
        ({"gpu": {"count": 4}}, "gpu.count is 4 and server.workers 1"),
        (
            {
                "gpu": {"count": 2, "resource": "nvidia.com/mig-1g.10gb"},
                "server": {"workers": 2},
            },
            "all workers would share the first slice",
        ),
        ({"fullnameOverride": "1st"}, "would be called 1st, and a Service's name begins with a"),
        (
            {"server": {"maxBatchDelay": 585_000}},
            "server.maxBatchDelay is 585000 ms: .* has 585 s for it",
        ),
        (
            {"server": {"responseTimeout": 3600}, "ingress": {"enabled": True, "host": "a"}},
            "limits.requestSeconds is 1260 and server.responseTimeout 3600",
        ),
        # The shipped archive's 1200, where the values say nothing.
        (
            {"limits": {"requestSeconds": 60}, "gateway": {"enabled": True}},
            "limits.requestSeconds is 60 and server.responseTimeout 1200",
        ),
    ],
)
def test_a_combination_that_cannot_work_is_refused_with_what_would(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(helm.HelmError, match=message):
        render(merged(REQUIRED, values))


@pytest.mark.parametrize(
    ("values", "path", "key"),
    [
        ({"podLabels": {"steno/track": "x"}}, "podLabels", "steno/track"),
        (
            {"podLabels": {"app.kubernetes.io/name": "x"}},
            "podLabels",
            "app.kubernetes.io/name",
        ),
        ({"podAnnotations": {"checksum/config": "x"}}, "podAnnotations", "checksum/config"),
        (
            {"ingress": {"annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "9m"}}},
            "ingress.annotations",
            "nginx.ingress.kubernetes.io/proxy-body-size",
        ),
        (
            {"monitoring": {"rules": {"labels": {"helm.sh/chart": "x"}}}},
            "monitoring.rules.labels",
            "helm.sh/chart",
        ),
    ],
)
def test_a_key_that_the_chart_sets_itself_is_refused(
    values: dict[str, Any], path: str, key: str
) -> None:
    with pytest.raises(helm.HelmError, match=f"{path} has {key}, which the chart sets itself"):
        render(merged(REQUIRED, values))


def test_values_that_are_taken_away_have_no_keys() -> None:
    assert render(merged(REQUIRED, {"podLabels": None, "podAnnotations": None}))


def test_the_keys_that_are_refused_are_those_that_the_chart_sets() -> None:
    monitoring = {part: {"enabled": True} for part in ("serviceMonitor", "rules", "dashboard")}
    values = {"monitoring": monitoring, "canary": {"enabled": True, "version": "v8"}}
    ingress = {"enabled": True, "host": "a.example.com"}
    manifests = render(merged(REQUIRED, values, {"ingress": ingress}))
    pod = of_kind(manifests, "Deployment")[0]["spec"]["template"]["metadata"]

    def refused(values: dict[str, Any]) -> bool:
        try:
            render(merged(REQUIRED, values))
        except helm.HelmError as error:
            return "which the chart sets itself" in str(error)
        return False

    annotations = [item["metadata"]["annotations"] for item in of_kind(manifests, "Ingress")]
    assert all(refused({"podLabels": {key: "x"}}) for key in pod["labels"])
    assert all(refused({"podAnnotations": {key: "x"}}) for key in pod["annotations"])
    for key in {key for given in annotations for key in given}:
        assert refused({"ingress": {"annotations": {key: "x"}}})
    for kind, part in (("ServiceMonitor", "serviceMonitor"), ("PrometheusRule", "rules")):
        for key in of_kind(manifests, kind)[0]["metadata"]["labels"]:
            assert refused({"monitoring": {part: {"labels": {key: "x"}}}})


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(helm.HelmError) as caught:
        render({})
    for name in ("image.repository", "model.store", "auth.existingSecret"):
        assert name in str(caught.value)


def test_every_value_is_documented_and_the_reference_is_current() -> None:
    text = VALUES.read_text()
    assert REFERENCE.read_text() == document(text), "run: python -m helm.values_reference"
    # Every leaf is covered by an entry.
    paths = [entry.path for entry in entries(text)]

    def covered(values: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            path = f"{prefix}{key}"
            if path not in paths:
                assert isinstance(value, dict) and value, f"{path} is not documented"
                covered(value, f"{path}.")

    covered(yaml.safe_load(text), "")


def test_a_value_without_a_comment_is_found() -> None:
    with pytest.raises(ValueError, match=r"a\.b has no comment"):
        entries("a:\n  b: 1\n")


def test_schema_and_values_have_the_same_keys() -> None:
    schema = chart().schema
    assert schema is not None

    def same(values: dict[str, Any], node: dict[str, Any], path: str) -> None:
        if "properties" not in node:
            return
        known = set(node["properties"]) - {"global"}
        # What goes to the handler has no default in the chart.
        if path == "/server/handler":
            return
        assert known == set(values), path
        for key, value in values.items():
            if isinstance(value, dict):
                same(value, node["properties"][key], f"{path}/{key}")

    same(yaml.safe_load(VALUES.read_text()), schema, "")


def test_the_notes_tell_how_to_call_what_was_installed() -> None:
    plain = notes(REQUIRED)
    assert "port-forward" in plain and "get secret steno-tokens" in plain
    ingress = {"enabled": True, "host": "a.example.com", "tlsSecret": "tls"}
    reached = notes(merged(REQUIRED, {"ingress": ingress}))
    assert "URL=https://a.example.com/v1/audio/transcriptions" in reached
    production = notes(values_of(CHART / "values" / "production.yaml"))
    assert "URL=https://speech.example.com/v1/audio/transcriptions" in production
    assert "no token is asked for" in notes(merged(REQUIRED, {"auth": {"enabled": False}}))
    grpc = notes(values_of(CHART / "ci" / "grpc-values.yaml"))
    assert "is on port 50051 of service/demo-steno" in grpc and "gRPC" not in plain
