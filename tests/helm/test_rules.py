"""Recording rules and alerts, run by Prometheus' own promtool: each fires, and each stays silent."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import CHART, REQUIRED, merged, of_kind, render, values_of
from tests.helm.promtool import run_promtool
from training.package import ROOT

LABELS = {"namespace": "speech", "service": "demo-steno-metrics", "track": "stable"}


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    shown = ",".join(f'{key}="{value}"' for key, value in {**LABELS, **labels}.items())
    return {"series": f"{name}{{{shown}}}", "values": values}


def rule_groups(**rules: Any) -> dict[str, Any]:
    monitoring = {"rules": {"enabled": True, **rules}}
    values = merged(REQUIRED, {"gpu": {"count": 1}, "monitoring": monitoring})
    (rule,) = of_kind(render(values), "PrometheusRule")
    return {"groups": rule["spec"]["groups"]}


ALERTS = {
    rule["alert"]: rule
    for group in rule_groups()["groups"]
    for rule in group["rules"]
    if "alert" in rule
}


@dataclass(frozen=True)
class Case:
    """What one alert sees for hours, and whether it fires then."""

    alert: str
    fires: bool
    series: list[dict[str, str]]
    at: str = "7h"
    labels: dict[str, str] = field(default_factory=lambda: LABELS)


def requests(errors_per_minute: str) -> list[dict[str, str]]:
    return [
        series("ts_inference_requests_total", "0+100x500", pod="a"),
        series("Requests5XX", f"0+{errors_per_minute}x500", pod="a"),
    ]


def failing_probes(predictions: str) -> list[dict[str, str]]:
    """The liveness probe alone has six errors a minute."""
    return [
        series("ts_inference_requests_total", predictions, pod="a"),
        series("Requests5XX", "0+6x500", pod="a"),
    ]


def out_of_memory(errors: str) -> list[dict[str, str]]:
    return [series("steno_errors_total", errors, pod="a", Type="out_of_memory")]


def pod_state(pod: str, *, ready: int, draining: int = 0) -> list[dict[str, str]]:
    return [
        series("steno_ready", f"{ready}x500", pod=pod),
        series("steno_draining", f"{draining}x500", pod=pod),
    ]


def batches(within_10_s: str) -> list[dict[str, str]]:
    return [
        series("steno_model_seconds_count", "0+100x500", pod="a"),
        series("steno_model_seconds_bucket", f"0+{within_10_s}x500", pod="a", le="10.0"),
    ]


def queue(depth: str, pod: str = "a") -> list[dict[str, str]]:
    return [
        series("steno_queue_depth", depth, pod=pod),
        series("steno_queue_capacity", "64x500", pod=pod),
    ]


def versions(
    first: str, second: str, production: str = "v7", pinned: str = "false"
) -> list[dict[str, str]]:
    return [
        series("steno_model_info", "1x500", pod="a", version=first, pinned=pinned),
        series("steno_model_info", "1x500", pod="b", version=second, pinned=pinned),
        series("steno_production_info", "1x500", pod="a", version=production),
        series("steno_production_info", "1x500", pod="b", version=production),
    ]


def deployment(wanted: int, available: int, name: str = "demo-steno") -> list[dict[str, str]]:
    labels = f'namespace="speech",deployment="{name}"'
    return [
        {"series": f"kube_deployment_spec_replicas{{{labels}}}", "values": f"{wanted}x500"},
        {
            "series": f"kube_deployment_status_replicas_available{{{labels}}}",
            "values": f"{available}x500",
        },
    ]


def scraped(up: int, ready: int) -> list[dict[str, str]]:
    """What is known of a pod: whether Prometheus reaches it, and whether it is ready."""
    pod = 'namespace="speech",pod="demo-steno-5d-x",condition="true"'
    return [
        series("up", f"{up}x500", pod="demo-steno-5d-x", endpoint="metrics"),
        {"series": f"kube_pod_status_ready{{{pod}}}", "values": f"{ready}x500"},
    ]


def restarts(values: str, *reasons: str, **others: str) -> list[dict[str, str]]:
    labels = {"namespace": "speech", "pod": "demo-steno-5d-x", "container": "server", **others}
    shown = ",".join(f'{key}="{value}"' for key, value in labels.items())
    told = [
        {
            "series": f'kube_pod_container_status_last_terminated_reason{{{shown},reason="{reason}"}}',
            "values": "1x500",
        }
        for reason in reasons
    ]
    return [
        {"series": f"kube_pod_container_status_restarts_total{{{shown}}}", "values": values},
        *told,
    ]


def gpu(used: str, pod: str = "demo-steno-5d-x") -> list[dict[str, str]]:
    labels = f'exported_namespace="speech",exported_pod="{pod}",gpu="0"'
    return [
        {"series": f"DCGM_FI_DEV_FB_USED{{{labels}}}", "values": f"{used}x500"},
        {"series": f"DCGM_FI_DEV_FB_FREE{{{labels}}}", "values": "1000x500"},
    ]


GPU = {"exported_namespace": "speech", "exported_pod": "demo-steno-5d-x"}
POD = {"namespace": "speech", "pod": "demo-steno-5d-x"}
DEPLOYMENT = {"namespace": "speech", "deployment": "demo-steno"}
CASES = [
    # 0.5 % may fail; 14.4 times that is 7.2 %.
    Case("StenoErrorsFast", True, requests("8")),
    Case("StenoErrorsFast", False, requests("6")),
    # For five minutes only: the hour does not say so.
    Case(
        "StenoErrorsFast",
        False,
        [*requests("0")[:1], series("Requests5XX", "0x414 0+8x80", pod="a")],
    ),
    # Nobody called, today or ever: failing probes are no failed requests.
    Case("StenoErrorsFast", False, failing_probes("9x500")),
    Case("StenoErrorsFast", False, failing_probes("")[1:]),
    Case("StenoErrorsSlow", False, failing_probes("9x500")),
    Case("StenoErrorsSlow", True, requests("4")),
    Case("StenoErrorsSlow", False, requests("2")),
    # 5 % may be slow; 14.4 times that is 72 %.
    Case("StenoLatencyFast", True, batches("20")),
    Case("StenoLatencyFast", False, batches("40")),
    Case("StenoLatencySlow", True, batches("60")),
    Case("StenoLatencySlow", False, batches("80")),
    Case("StenoQueueGrows", True, queue("40x500")),
    Case("StenoQueueGrows", False, queue("30x500")),
    # One pod among empty ones.
    Case("StenoQueueGrows", True, [*queue("40x500"), *queue("0x500", "b"), *queue("0x500", "c")]),
    # A peak that is gone after four minutes.
    Case("StenoQueueGrows", False, queue("0x415 60x3 0x80")),
    Case("StenoNoReadyWorker", True, pod_state("a", ready=0)),
    Case(
        "StenoNoReadyWorker",
        True,
        [*pod_state("a", ready=0), *pod_state("b", ready=0, draining=1)],
    ),
    Case("StenoNoReadyWorker", False, [*pod_state("a", ready=0), *pod_state("b", ready=1)]),
    # Scaled to zero, or removed: the last pod answers what it has.
    Case("StenoNoReadyWorker", False, pod_state("a", ready=0, draining=1)),
    Case("StenoNoPod", True, deployment(2, 0), labels=DEPLOYMENT),
    Case(
        "StenoNoPod",
        True,
        [*deployment(2, 2), *deployment(1, 0, "demo-steno-canary")],
        labels={**DEPLOYMENT, "deployment": "demo-steno-canary"},
    ),
    Case("StenoNoPod", False, deployment(2, 0, "other-steno"), labels=DEPLOYMENT),
    Case("StenoNoPod", False, deployment(2, 1), labels=DEPLOYMENT),
    Case("StenoNoPod", False, deployment(0, 0), labels=DEPLOYMENT),  # scaled to zero
    Case("StenoMetricsMissing", True, deployment(2, 1)),
    Case(
        "StenoMetricsMissing",
        True,
        [
            *deployment(2, 2),
            *deployment(1, 1, "demo-steno-canary"),
            series("steno_ready", "1x500", pod="a"),
        ],
        labels={**LABELS, "track": "canary"},
    ),
    # The exporter's port is scraped, TorchServe's is not.
    Case(
        "StenoMetricsMissing",
        True,
        [*deployment(1, 1), series("steno_ready", "1x500", pod="a"), *scraped(up=0, ready=1)],
    ),
    Case(
        "StenoMetricsMissing",
        False,
        [*deployment(1, 1), series("steno_ready", "0x500", pod="a"), *scraped(up=1, ready=1)],
    ),
    Case("StenoMetricsMissing", False, deployment(2, 0)),
    Case("StenoMetricsMissing", False, scraped(up=0, ready=0)),  # it starts
    Case("StenoVersionMismatch", True, versions("v7", "v6")),
    Case("StenoVersionMismatch", True, versions("v6", "v6")),
    Case("StenoVersionMismatch", False, versions("v7", "v7")),
    Case("StenoVersionMismatch", False, versions("v6", "v6", pinned="true")),
    Case("StenoStoreUnreachable", True, [series("steno_store_up", "0x500", pod="a")]),
    Case("StenoStoreUnreachable", False, [series("steno_store_up", "1x500", pod="a")]),
    # The handler makes the series with the first error: it is born at 1.
    Case("StenoOutOfMemory", True, out_of_memory("_x415 1x80")),
    Case("StenoOutOfMemory", True, out_of_memory("3x415 4x80")),
    Case("StenoOutOfMemory", False, out_of_memory("_x380 1x120")),
    Case("StenoOutOfMemory", False, out_of_memory("1x500")),
    # Prometheus saw nothing for five minutes and for an hour: an old count is no new error.
    Case("StenoOutOfMemory", False, out_of_memory("2x410 _x5 2x80")),
    Case("StenoOutOfMemory", False, out_of_memory("2x330 _x60 2x110")),
    Case(
        "StenoOutOfMemory",
        False,
        [series("steno_errors_total", "0+1x500", pod="a", Type="not_audio")],
    ),
    Case(
        "StenoContainerRestarts",
        True,
        restarts("0x415 1x80", "OOMKilled"),
        labels={**POD, "reason": "OOMKilled"},
    ),
    # kube-state-metrics was not told why.
    Case("StenoContainerRestarts", True, restarts("0x415 1x80"), labels=POD),
    Case("StenoContainerRestarts", False, restarts("1x500", "OOMKilled")),
    Case("StenoContainerRestarts", False, restarts("0x380 1x120", "Error")),
    Case("StenoContainerRestarts", False, restarts("0x415 1x80", "Error", container="exporter")),
    Case("StenoContainerRestarts", False, restarts("0x415 1x80", pod="demo-steno-b-5d-x")),
    Case("StenoGpuMemory", True, gpu("24000"), labels=GPU),
    Case("StenoGpuMemory", False, gpu("15000"), labels=GPU),
    Case("StenoGpuMemory", False, gpu("24000", "demo-steno-b-5d-x"), labels=GPU),  # another's
]


def assert_promtool_agrees(folder: Path, tests: list[dict[str, Any]], **settings: Any) -> None:
    """Run promtool's unit tests, with the settings of their file, in a folder."""
    (folder / "tests.yaml").write_text(yaml.safe_dump({**settings, "tests": tests}))
    done = run_promtool("test", "rules", "tests.yaml", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules")
    (path / "rules.yaml").write_text(yaml.safe_dump(rule_groups()))
    return path


def test_prometheus_reads_the_rules(folder: Path) -> None:
    done = run_promtool("check", "rules", "rules.yaml", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {sum(len(g['rules']) for g in rule_groups()['groups'])} rules" in done.stdout


def test_without_a_bound_for_the_latency_nothing_looks_at_it() -> None:
    groups = rule_groups(latencySeconds=None)
    names = {rule.get("alert") for group in groups["groups"] for rule in group["rules"]}
    assert set(ALERTS) - names == {"StenoLatencyFast", "StenoLatencySlow"}
    assert "slow_ratio" not in yaml.safe_dump(groups)


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent() -> None:
    for fires in (True, False):
        assert {case.alert for case in CASES if case.fires is fires} == set(ALERTS)


def test_the_alerts_fire_when_they_should_and_stay_silent_when_they_should(folder: Path) -> None:
    tests = []
    for case in CASES:
        rule = ALERTS[case.alert]
        labels = {**case.labels, **rule["labels"], "alertname": case.alert, "alertstate": "firing"}
        shown = ",".join(f'{key}="{value}"' for key, value in labels.items())
        firing = [{"labels": f"ALERTS{{{shown}}}", "value": 1}]
        check = {
            "expr": f'ALERTS{{alertname="{case.alert}",alertstate="firing"}}',
            "eval_time": case.at,
            "exp_samples": firing if case.fires else [],
        }
        tests.append({"interval": "1m", "input_series": case.series, "promql_expr_test": [check]})
    assert_promtool_agrees(folder, tests, rule_files=["rules.yaml"], evaluation_interval="5m")


def test_recording_rules_give_what_they_say(folder: Path) -> None:
    inputs = [
        *requests("5"),
        *batches("90"),
        series("ts_inference_latency_microseconds", "0+200000000x500", pod="a"),
        series("steno_batch_size_sum", "0+100x500", pod="a"),
        series("steno_queue_depth", "6x500", pod="a"),
        series("steno_queue_depth", "2x500", pod="b"),
        series("steno_workers_ready", "1x500", pod="a"),
        series("steno_workers_ready", "1x500", pod="b"),
    ]
    expected = {
        "steno:requests:rate5m": 100 / 60,
        "steno:latency_seconds:rate5m": 2.0,
        "steno:error_ratio:rate5m": 0.05,
        "steno:error_ratio:rate6h": 0.05,
        "steno:slow_ratio:rate1h": 0.1,
        "steno:queue_per_worker": 4.0,
    }
    shown = ",".join(f'{key}="{value}"' for key, value in LABELS.items())
    checks = [
        {
            "expr": f"round({name}, 0.0001)",
            "eval_time": "7h",
            "exp_samples": [{"labels": f"{{{shown}}}", "value": round(value, 4)}],
        }
        for name, value in expected.items()
    ]
    tests = [{"interval": "1m", "input_series": inputs, "promql_expr_test": checks}]
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "5m", "tests": tests}
    (folder / "recording.yaml").write_text(yaml.safe_dump(document))
    done = run_promtool("test", "rules", "recording.yaml", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("fewest", "inputs", "expected"),
    [
        # Prometheus lost the pods: no figure, so KEDA (`ignoreNullValues: "false"`) scales nothing.
        (2, deployment(2, 2), None),
        (0, deployment(2, 2), None),
        (2, [*deployment(2, 2), *queue("6x500")], 6),
        (0, [*deployment(2, 2), *queue("6x500")], 6),
        # No pods, no queue.
        (0, deployment(0, 0), 0),
    ],
)
def test_keda_reads_a_queue_that_is_not_measured_as_unknown(
    tmp_path: Path, fewest: int, inputs: list[dict[str, str]], expected: int | None
) -> None:
    scaling = {"by": "keda", "minReplicas": fewest, "keda": {"activationQuery": "sum(calls)"}}
    values = {"autoscaling": scaling, "monitoring": {"serviceMonitor": {"enabled": True}}}
    (scaler,) = of_kind(render(merged(REQUIRED, values)), "ScaledObject")
    trigger = scaler["spec"]["triggers"][0]["metadata"]
    assert trigger["ignoreNullValues"] == "false"
    samples = [] if expected is None else [{"labels": "{}", "value": expected}]
    check = {"expr": trigger["query"], "eval_time": "1h", "exp_samples": samples}
    tests = [{"interval": "1m", "input_series": inputs, "promql_expr_test": [check]}]
    assert_promtool_agrees(tmp_path, tests)


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "runbooks").glob("Steno*.md")}
    assert pages == set(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"
        assert re.fullmatch(r"[A-Z{].*\.", rule["annotations"]["summary"])


@pytest.mark.parametrize(
    ("calls", "wakes"),
    [
        (None, 0),
        ("0 0 5x300", 0),  # of an hour ago
        ("_x59 1 1", 1),  # the first call makes the series, of which `rate` sees no increase
        ("5x57 6 7 7", 1),
    ],
)
def test_a_first_call_wakes_a_release_that_is_scaled_to_zero(
    tmp_path: Path, calls: str | None, wakes: int
) -> None:
    values = values_of(CHART / "ci" / "keda-to-zero-values.yaml")
    query = values["autoscaling"]["keda"]["activationQuery"]
    labels = {"exported_namespace": "speech", "ingress": "demo-steno", "status": "503"}
    inputs = [series("nginx_ingress_controller_requests", calls, **labels)] if calls else []
    check = {
        "expr": f"({query}) > bool 0",
        "eval_time": "1h",
        "exp_samples": [{"labels": "{}", "value": wakes}],
    }
    tests = [{"interval": "1m", "input_series": inputs, "promql_expr_test": [check]}]
    assert_promtool_agrees(tmp_path, tests)


def test_the_readme_wakes_it_in_the_same_way() -> None:
    values = values_of(CHART / "ci" / "keda-to-zero-values.yaml")
    query = values["autoscaling"]["keda"]["activationQuery"].split()
    told = (ROOT / "k8s" / "autoscaling" / "README.md").read_text().split()
    own = [word.replace('"speech"', '"steno"').replace('"demo-steno"', '"steno"') for word in query]
    place = told.index(own[0])
    assert told[place : place + len(own)] == own
