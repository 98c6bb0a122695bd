"""The PromQL of the dashboard, the rules and the autoscalers."""

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser

from tests.helm.chart import CHART, REQUIRED, merged, of_kind, render

# Not the pod's: the DCGM exporter's, kube-state-metrics' and Prometheus' own.
FOREIGN = frozenset(
    {
        "DCGM_FI_DEV_FB_FREE",
        "DCGM_FI_DEV_FB_USED",
        "DCGM_FI_DEV_GPU_UTIL",
        "kube_deployment_spec_replicas",
        "kube_deployment_status_replicas_available",
        "kube_pod_container_status_last_terminated_reason",
        "kube_pod_container_status_restarts_total",
        "kube_pod_status_ready",
        "up",
    }
)


def dashboard() -> dict[str, Any]:
    return dict(json.loads((CHART / "files" / "dashboard.json").read_text()))


def dashboard_queries() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def chart_queries() -> Iterator[str]:
    values = {"gpu": {"count": 1}, "autoscaling": {"by": "keda"}}
    monitoring = {"rules": {"enabled": True}, "serviceMonitor": {"enabled": True}}
    manifests = render(merged(REQUIRED, values, {"monitoring": monitoring}))
    for rule in of_kind(manifests, "PrometheusRule"):
        for group in rule["spec"]["groups"]:
            yield from (item["expr"] for item in group["rules"])
    for scaled in of_kind(manifests, "ScaledObject"):
        yield from (trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"])


def metrics_in(query: str) -> set[str]:
    """The metrics that a query reads. Raises ValueError if it is no PromQL."""
    # Printing normalizes: names stand before `{`, with the labels behind.
    text = promql_parser.parse(query.replace("$namespace", "n").replace("$service", "s")).prettify()
    return set(re.findall(r"([A-Za-z_:][\w:]*)\s*\{", text))


def queried_metrics() -> set[str]:
    """All metrics that come from outside: without those that recording rules make."""
    queries = [*dashboard_queries(), *chart_queries()]
    names = {name for query in queries for name in metrics_in(query)}
    return {name for name in names if ":" not in name}
