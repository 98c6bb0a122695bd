"""The manifests around the chart: valid, safe, and fitting to it."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.helm.chart import (
    CHART,
    REQUIRED,
    VALUE_FILES,
    chart,
    merged,
    of_kind,
    render,
    values_of,
)
from tests.helm.checks import Manifest, nothing_has_rights, quantity, secrets_are_given_by_name
from tests.helm.queries import metrics_in
from training.package import ROOT

K8S = ROOT / "k8s"
FOLDERS = sorted(path.parent for path in K8S.glob("*/kustomization.yaml"))


def objects(folder: Path) -> list[Manifest]:
    """What `kubectl apply -k` would apply."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    texts = [(folder / name).read_text() for name in listed]
    return [item for text in texts for item in yaml.safe_load_all(text) if item]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_object_is_valid_for_kubernetes(folder: Path) -> None:
    for item in objects(folder):
        for version in ("1.37", "1.36", "1.35"):
            kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("path", sorted(K8S.glob("*-rbac.yaml")), ids=lambda path: path.stem)
def test_permissions_are_valid_and_name_what_they_are_for(path: Path) -> None:
    items = list(yaml.safe_load_all(path.read_text()))
    for item in items:
        for version in ("1.37", "1.36", "1.35"):
            kubernetes_validate.validate(item, version, strict=True)
    (role,), (binding,) = of_kind(items, "Role"), of_kind(items, "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    for rule in role["rules"]:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_kustomization_lists_all_that_lies_beside_it(folder: Path) -> None:
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(
        path.name for path in folder.glob("*.yaml") if path.name != "kustomization.yaml"
    )


def test_the_s3_server_has_no_rights_no_secret_and_no_open_door() -> None:
    items = objects(K8S / "s3")
    (state,) = of_kind(items, "StatefulSet")
    as_deployment = [{**state, "kind": "Deployment"}]
    assert list(nothing_has_rights(as_deployment)) == []
    assert list(secrets_are_given_by_name(items)) == []
    (policy,) = of_kind(items, "NetworkPolicy")
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    labels = state["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    container = state["spec"]["template"]["spec"]["containers"][0]
    assert not container["image"].endswith(":latest") and ":" in container["image"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"] for volume in state["spec"]["template"]["spec"]["volumes"]}
    claims = {claim["metadata"]["name"] for claim in state["spec"]["volumeClaimTemplates"]}
    assert mounted == volumes | claims
    (service,) = of_kind(items, "Service")
    assert service["spec"]["selector"] == labels
    assert service["spec"]["ports"][0]["targetPort"] in {p["name"] for p in container["ports"]}


def test_the_namespace_enforces_the_restricted_standard() -> None:
    (namespace,) = of_kind(objects(K8S / "namespaces"), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_quota_has_room_for_production_at_its_largest() -> None:
    values: dict[str, Any] = chart().merge_values(values_of(CHART / "values" / "production.yaml"))
    (quota,) = of_kind(objects(K8S / "namespaces"), "ResourceQuota")
    hard = quota["spec"]["hard"]
    # All of them, a surging one, a canary, and as many that drain.
    pods = 2 * values["autoscaling"]["maxReplicas"] + 2
    kinds = ("resources", "exporterResources")
    for key in ("cpu", "memory"):
        needed = pods * sum(quantity(values[kind]["requests"][key]) for kind in kinds)
        assert quantity(hard[f"requests.{key}"]) >= needed
    limit = pods * sum(quantity(values[kind]["limits"]["memory"]) for kind in kinds)
    assert quantity(hard["limits.memory"]) >= limit
    assert int(hard["requests.nvidia.com/gpu"]) >= pods * values["gpu"]["count"]
    assert int(hard["pods"]) >= pods


def test_the_quota_bounds_each_kind_of_gpu_that_is_shipped() -> None:
    (quota,) = of_kind(objects(K8S / "namespaces"), "ResourceQuota")
    for path in VALUE_FILES:
        gpu: dict[str, Any] = chart().merge_values(values_of(path))["gpu"]
        assert f"requests.{gpu['resource']}" in quota["spec"]["hard"]


def test_the_priority_that_production_names_is_there() -> None:
    values = values_of(CHART / "values" / "production.yaml")
    (priority,) = of_kind(objects(K8S / "namespaces"), "PriorityClass")
    assert values["priorityClassName"] == priority["metadata"]["name"]


def test_helm_test_may_reach_the_server_where_all_else_is_denied() -> None:
    manifests = render(values_of(CHART / "values" / "production.yaml"))
    (pod,) = of_kind(manifests, "Pod")
    (deployment,) = of_kind(manifests, "Deployment")
    policy = next(
        item
        for item in of_kind(objects(K8S / "namespaces"), "NetworkPolicy")
        if item["metadata"]["name"] == "helm-test"
    )
    selected = policy["spec"]["podSelector"]["matchLabels"]
    assert selected.items() <= pod["metadata"]["labels"].items()
    target = policy["spec"]["egress"][1]["to"][0]["podSelector"]["matchLabels"]
    assert target.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_the_adapter_makes_the_metrics_that_the_autoscaler_asks_for() -> None:
    scaling = {"by": "hpa", "gpuUtilization": 80}
    monitoring = {"serviceMonitor": {"enabled": True}}
    values = merged(
        REQUIRED, {"gpu": {"count": 1}, "autoscaling": scaling, "monitoring": monitoring}
    )
    (scaler,) = of_kind(render(values), "HorizontalPodAutoscaler")
    asked = {
        metric["pods"]["metric"]["name"]
        for metric in scaler["spec"]["metrics"]
        if metric["type"] == "Pods"
    }
    adapter = yaml.safe_load((K8S / "autoscaling" / "prometheus-adapter-values.yaml").read_text())
    rules = adapter["rules"]["custom"]
    assert {rule["name"]["as"] for rule in rules} == asked
    for rule in rules:
        assert metrics_in(rule["seriesQuery"])
        query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod")
        assert metrics_in(query.replace("<<.LabelMatchers>>", 'pod="a"'))
