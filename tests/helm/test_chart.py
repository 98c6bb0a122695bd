"""The chart, with every set of values that is shipped and many that are not."""

import subprocess
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handler.fetch import merge_settings
from tests.helm.chart import (
    CHART,
    CI_FILES,
    REQUIRED,
    VALUE_FILES,
    Manifest,
    chart,
    merged,
    notes,
    of_kind,
    render,
    values_of,
)
from tests.helm.checks import collisions, problems
from tests.helm.crds import KINDS, crd_problems
from training.package import ROOT

VERSIONS = ("1.37", "1.36", "1.35")


def schema_problems(manifest: Manifest, version: str) -> list[str]:
    if manifest["kind"] in KINDS:
        return crd_problems(manifest)
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{manifest['kind']} {list(error.path)}: {error.message}"]
    return []


@pytest.mark.parametrize("path", [*VALUE_FILES, *CI_FILES], ids=lambda path: path.stem)
def test_every_file_of_values_gives_sound_objects(path: Path) -> None:
    manifests = render(values_of(path))
    assert [p for m in manifests for v in VERSIONS for p in schema_problems(m, v)] == []
    assert problems(manifests) == []
    assert "helm test" in notes(values_of(path))


def test_the_promised_files_of_values_are_there() -> None:
    names = {path.stem for path in VALUE_FILES}
    assert names == {"cpu-dev", "single-gpu", "multi-gpu", "mig", "production"}


def test_helm_finds_no_fault() -> None:
    found = helm.lint(CHART, values=values_of(CHART / "values" / "production.yaml"))
    text = str(found)
    assert "[ERROR]" not in text and "[WARNING]" not in text, text


toggles = st.booleans()
choices: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "replicas": st.integers(0, 5),
        "gpu": st.fixed_dictionaries({"count": st.integers(0, 2)}),
        "fullnameOverride": st.sampled_from(["", "speech", "a" * 60]),
        "nameOverride": st.sampled_from(["", "asr"]),
        "model": st.fixed_dictionaries(
            {
                "version": st.sampled_from(["", "v7"]),
                "existingSecret": st.sampled_from(["", "store"]),
                "caConfigMap": st.sampled_from(["", "ca"]),
            }
        ),
        "auth": st.fixed_dictionaries({"enabled": toggles}),
        "service": st.fixed_dictionaries({"grpc": st.fixed_dictionaries({"enabled": toggles})}),
        "server": st.fixed_dictionaries(
            {
                "workers": st.integers(1, 3),
                "batchSize": st.none() | st.integers(1, 32),
                "maxBatchDelay": st.none() | st.integers(0, 100),
                "handler": st.sampled_from([{}, {"max_audio_seconds": 60}]),
            }
        ),
        "rollout": st.sampled_from(
            [
                {"maxSurge": 1, "progressDeadlineSeconds": 4630},
                {"maxSurge": "25%", "progressDeadlineSeconds": 9000},
                {"maxSurge": 0, "maxUnavailable": "50%", "progressDeadlineSeconds": 4630},
            ]
        ),
        "drain": st.fixed_dictionaries({"timeoutSeconds": st.integers(16, 4000)}),
        "autoscaling": st.fixed_dictionaries(
            {
                "by": st.sampled_from(["none", "hpa", "keda"]),
                "minReplicas": st.integers(1, 3),
                "maxReplicas": st.integers(3, 9),
                "queuePerWorker": st.sampled_from([0.01, 0.5, 1, 2.5, 3.3]),
                "keda": st.sampled_from([{}, {"activationQuery": "sum(rate(calls[2m]))"}]),
            }
        ),
        "canary": st.fixed_dictionaries({"enabled": toggles, "version": st.just("v8")}),
        "ingress": st.fixed_dictionaries(
            {
                "enabled": st.just(True),
                "host": st.just("a.example.com"),
                "tlsSecret": st.sampled_from(["", "tls"]),
            }
        ),
        "gateway": st.fixed_dictionaries(
            {"enabled": toggles, "parentRefs": st.just([{"name": "public"}])}
        ),
        "networkPolicy": st.sampled_from(
            [{}, {"enabled": False}, {"from": [], "metricsFrom": [], "storeCidrs": []}]
        ),
        "podDisruptionBudget": st.fixed_dictionaries({"enabled": toggles}),
        "serviceAccount": st.sampled_from([{}, {"create": False}, {"name": "speech"}]),
        "tolerations": st.sampled_from([[], [{"key": "a", "operator": "Exists"}]]),
        "monitoring": st.fixed_dictionaries(
            {
                "scrapedOtherwise": st.just(True),
                "serviceMonitor": st.fixed_dictionaries({"enabled": toggles}),
                "rules": st.fixed_dictionaries(
                    {"enabled": toggles, "latencySeconds": st.sampled_from([0.5, 1, 2.5, 10, None])}
                ),
                "dashboard": st.fixed_dictionaries({"enabled": toggles}),
            }
        ),
    }
)


def can_go_together(values: dict[str, Any]) -> bool:
    open_to_grpc = not values["auth"]["enabled"] or not values["service"]["grpc"]["enabled"]
    return open_to_grpc and values["gpu"]["count"] <= values["server"]["workers"]


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(choices.filter(can_go_together), st.sampled_from(VERSIONS))
def test_any_combination_gives_sound_objects(values: dict[str, Any], version: str) -> None:
    manifests = render(merged(REQUIRED, values))
    assert problems(manifests) == []
    assert [p for m in manifests for p in schema_problems(m, version)] == []


@settings(max_examples=10, deadline=None)
@given(choices.filter(lambda v: can_go_together(v) and not v["fullnameOverride"]))
def test_two_releases_in_one_namespace_share_nothing(values: dict[str, Any]) -> None:
    given = merged(REQUIRED, values, {"serviceAccount": {"name": ""}})
    assert collisions(render(given, release="one"), render(given, release="other")) == []


def test_long_names_that_begin_alike_share_nothing() -> None:
    canary = {"canary": {"enabled": True, "version": "v8", "weight": 0}}
    values = merged(REQUIRED, canary)
    one, other = (render(values, release=f"{'steno' * 10}-{end}") for end in "ab")
    assert collisions(one, other) == []
    assert problems(one) == []
    overrides = ({"fullnameOverride": f"{'steno' * 10}-{end}"} for end in "ab")
    one, other = (render(merged(values, given), release="one") for given in overrides)
    assert {item["metadata"]["name"] for item in one}.isdisjoint(
        item["metadata"]["name"] for item in other
    )


@pytest.mark.parametrize("release", ["my.app", "1st"])
def test_a_release_whose_services_no_cluster_would_take_is_refused(release: str) -> None:
    with pytest.raises(helm.HelmError, match="begins with a letter and has no dot: give fullname"):
        render(REQUIRED, release=release)
    assert render({**REQUIRED, "fullnameOverride": "speech"}, release=release)


def test_the_notes_tell_whom_the_network_policy_keeps_out() -> None:
    told = "nobody gets in but who is named in networkPolicy.from"
    gateway = {"enabled": True, "parentRefs": [{"name": "public"}]}
    assert told in notes({**REQUIRED, "gateway": gateway})
    assert told in notes({**REQUIRED, "service": {"type": "LoadBalancer"}})
    assert told not in notes(REQUIRED)


def test_every_ending_of_a_name_is_refused_as_the_end_of_another_releases_name() -> None:
    monitoring = {part: {"enabled": True} for part in ("serviceMonitor", "rules", "dashboard")}
    values = {"monitoring": monitoring, "canary": {"enabled": True, "version": "v8", "weight": 0}}
    names = {item["metadata"]["name"] for item in render(merged(REQUIRED, values))}
    for name in names - {"demo-steno"}:
        with pytest.raises(helm.HelmError, match="those of the release demo-steno end in"):
            render(REQUIRED, release=name)


def test_the_pod_gets_the_files_that_serve_locally_byte_for_byte() -> None:
    (config,) = (
        item
        for item in of_kind(render(REQUIRED), "ConfigMap")
        if item["metadata"]["name"] == "demo-steno"
    )
    for name in ("config.properties", "metrics.yaml", "log4j2.xml"):
        assert config["data"][name] == (ROOT / "handler" / name).read_text()
    assert set(config["data"]) == {
        "config.properties",
        "metrics.yaml",
        "log4j2.xml",
        "settings.yaml",
    }


def test_a_packaged_chart_holds_the_files_and_not_links(tmp_path: Path) -> None:
    archive = Path(str(helm.package(CHART, destination=tmp_path)))
    with helm.Chart.load(archive) as packaged:
        assert render(REQUIRED, source=packaged) == render(REQUIRED)


def settings_of(manifests: list[Manifest]) -> dict[str, Any]:
    """What the pods change in the archive's configuration."""
    (settings,) = (
        item["data"]["settings.yaml"]
        for item in of_kind(manifests, "ConfigMap")
        if item["metadata"]["name"] == "demo-steno"
    )
    return dict(yaml.safe_load(settings))


def test_the_pods_settings_fit_the_shipped_archive() -> None:
    shipped = yaml.safe_load((ROOT / "handler" / "model-config.yaml").read_text())
    for path in [*VALUE_FILES, *CI_FILES]:
        settings_of_pod = merge_settings(shipped, settings_of(render(values_of(path))))
        workers = chart().merge_values(values_of(path))["server"]["workers"]
        assert settings_of_pod["minWorkers"] == settings_of_pod["maxWorkers"] == workers
        open_to_all = chart().merge_values(values_of(path))["auth"]["enabled"] is False
        assert ("token_file" not in settings_of_pod["handler"]) is open_to_all


@pytest.mark.parametrize(
    ("memory", "queue"), [("256Mi", 1), ("4Gi", 20), (2**33, 40), ("8Gi", 40), ("16Gi", 64)]
)
def test_the_queue_holds_what_the_memory_does(memory: str | int, queue: int) -> None:
    """Bodies of 40 MiB in four fifths of Java's heap; at most as many as the archive says."""
    amounts = {"requests": {"memory": memory}, "limits": {"memory": memory}}
    settings = settings_of(render(merged(REQUIRED, {"resources": amounts})))
    assert settings["jobQueueSize"] == queue


@pytest.mark.parametrize(
    ("values", "device"),
    [
        ({"gpu": {"count": 1}}, "cuda"),
        ({"gpu": {"count": 1}, "server": {"handler": {"device": "auto"}}}, "auto"),
        ({}, None),
    ],
)
def test_a_pod_that_asks_for_a_gpu_does_without_only_if_that_is_said(
    values: dict[str, Any], device: str | None
) -> None:
    handler = settings_of(render(merged(REQUIRED, values)))["handler"]
    assert handler.get("device") == device


def test_text_that_looks_like_something_else_stays_text() -> None:
    values = {
        "ingress": {"enabled": True, "host": "speech.example.com"},
        "limits": {"requestSize": "42991616"},
        "networkPolicy": {"storeCidrs": ["::/0"], "storeTo": [{"podSelector": {}}]},
        "test": {"expect": "lights: on # now"},
        "nameOverride": "456",
        "fullnameOverride": "speech",
    }
    manifests = render(merged(REQUIRED, values), release="123")
    (ingress,) = of_kind(manifests, "Ingress")
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == "42991616"
    assert ingress["metadata"]["labels"]["app.kubernetes.io/instance"] == "123"
    assert ingress["metadata"]["labels"]["app.kubernetes.io/name"] == "456"
    (policy,) = of_kind(manifests, "NetworkPolicy")
    assert policy["spec"]["egress"][1]["to"] == [{"ipBlock": {"cidr": "::/0"}}, {"podSelector": {}}]
    (test,) = of_kind(manifests, "Pod")
    assert "--expect=lights: on # now" in test["spec"]["containers"][0]["args"]


def test_pods_that_an_autoscaler_may_add_are_not_all_taken_at_once() -> None:
    scaled = {"by": "hpa", "minReplicas": 1, "maxReplicas": 8}
    values = {"autoscaling": scaled, "monitoring": {"scrapedOtherwise": True}}
    assert of_kind(render(merged(REQUIRED, values)), "PodDisruptionBudget")
    alone = {**values, "autoscaling": {**scaled, "maxReplicas": 1}}
    assert not of_kind(render(merged(REQUIRED, alone)), "PodDisruptionBudget")


def test_a_changed_configuration_replaces_the_pods() -> None:
    def checksum(values: dict[str, Any]) -> str:
        (deployment,) = of_kind(render(merged(REQUIRED, values)), "Deployment")
        return str(deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum({"server": {"batchSize": 4}}) != checksum({})
    assert checksum({"replicas": 5}) == checksum({})


def test_a_canary_follows_its_own_version_and_never_the_pointer() -> None:
    manifests = render(values_of(CHART / "ci" / "ingress-canary-values.yaml"))

    def version(track: str) -> str | None:
        (deployment,) = (
            item
            for item in of_kind(manifests, "Deployment")
            if item["metadata"]["labels"]["steno/track"] == track
        )
        fetch = deployment["spec"]["template"]["spec"]["initContainers"][0]
        return {item["name"]: item.get("value") for item in fetch["env"]}.get("STENO_VERSION")

    assert (version("stable"), version("canary")) == ("v7", "v8")
    weights = [
        item["metadata"]["annotations"].get("nginx.ingress.kubernetes.io/canary-weight")
        for item in of_kind(manifests, "Ingress")
    ]
    assert weights == [None, "10"]


def test_a_canary_begins_and_ends_without_callers() -> None:
    waits = {"canary": {"enabled": True, "version": "v8", "weight": 0}}
    by_ingress = {"ingress": {"enabled": True, "host": "a.example.com"}}
    by_gateway = {"gateway": {"enabled": True, "parentRefs": [{"name": "public"}]}}
    for reached in ({}, by_ingress, by_gateway):
        manifests = render(merged(REQUIRED, waits, reached))
        assert problems(manifests) == []
        assert [p for m in manifests for p in schema_problems(m, VERSIONS[0])] == []
        for ingress in of_kind(manifests, "Ingress")[1:]:
            annotations = ingress["metadata"]["annotations"]
            assert annotations["nginx.ingress.kubernetes.io/canary-weight"] == "0"
        for route in of_kind(manifests, "HTTPRoute"):
            for rule in route["spec"]["rules"]:
                assert [backend["weight"] for backend in rule["backendRefs"]] == [100, 0]


@pytest.mark.parametrize(
    ("by", "workers", "target"),
    [("hpa", 3, 0.5), ("keda", 1, 0.5), ("keda", 3, 1.5)],  # the adapter counts the workers itself
)
def test_an_autoscaler_may_aim_below_one_request_for_each_worker(
    by: str, workers: int, target: float
) -> None:
    values = {
        "autoscaling": {"by": by, "queuePerWorker": 0.5},
        "server": {"workers": workers},
        "monitoring": {"serviceMonitor": {"enabled": True}},
    }
    manifests = render(merged(REQUIRED, values))
    assert [p for m in manifests for v in VERSIONS for p in schema_problems(m, v)] == []
    if by == "hpa":
        (scaler,) = of_kind(manifests, "HorizontalPodAutoscaler")
        found = scaler["spec"]["metrics"][0]["pods"]["target"]["averageValue"]
    else:
        (scaler,) = of_kind(manifests, "ScaledObject")
        found = scaler["spec"]["triggers"][0]["metadata"]["threshold"]
    assert found == str(target)


def test_grpc_is_offered_by_each_track_where_it_is_asked_for() -> None:
    def offered(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {
            service["metadata"]["name"]: {port["name"]: port for port in service["spec"]["ports"]}
            for service in of_kind(render(values), "Service")
        }

    found = offered(values_of(CHART / "ci" / "grpc-values.yaml"))
    for track in ("demo-steno", "demo-steno-canary"):
        assert found[track]["grpc"]["port"] == 50051
        assert found[track]["grpc"]["appProtocol"] == "kubernetes.io/h2c"
    assert set(offered(REQUIRED)["demo-steno"]) == {"http"}


@pytest.mark.parametrize(("kind", "told"), [("ClusterIP", True), ("LoadBalancer", False)])
def test_a_load_balancer_is_not_told_to_ask_for_health_over_http(kind: str, told: bool) -> None:
    services = of_kind(render({**REQUIRED, "service": {"type": kind}}), "Service")
    (ports,) = (s["spec"]["ports"] for s in services if s["metadata"]["name"] == "demo-steno")
    assert ("appProtocol" in ports[0]) is told


def test_without_a_pinned_version_the_pointer_is_followed() -> None:
    (deployment,) = of_kind(render(REQUIRED), "Deployment")
    fetch = deployment["spec"]["template"]["spec"]["initContainers"][0]
    assert "STENO_VERSION" not in {item["name"] for item in fetch["env"]}


def test_the_repository_holds_links_and_no_copies() -> None:
    for name in ("config.properties", "metrics.yaml", "log4j2.xml"):
        assert (CHART / "files" / name).resolve() == ROOT / "handler" / name
    listed = subprocess.run(
        ["git", "ls-files", "-s", "helm/steno/files"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert sum(line.startswith("120000") for line in listed.splitlines()) == 4
