"""The dashboard's form; that its metrics are real is tested on a pod (tests/handler/test_pod.py)."""

import json

import pytest
import yaml

from tests.helm.chart import REQUIRED, merged, of_kind, render
from tests.helm.queries import chart_queries, dashboard, dashboard_queries, metrics_in


@pytest.mark.parametrize("query", [*dashboard_queries(), *chart_queries()])
def test_every_query_is_promql_and_names_a_metric(query: str) -> None:
    assert metrics_in(query)


def test_what_is_no_promql_is_refused() -> None:
    with pytest.raises(ValueError, match="unclosed"):
        metrics_in("sum by (track (steno_ready)")


def test_panels_have_numbers_titles_and_units_of_their_own() -> None:
    panels = dashboard()["panels"]
    for key in ("id", "title"):
        assert len({panel[key] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels)
    variables = {item["name"] for item in dashboard()["templating"]["list"]}
    assert variables == {"datasource", "namespace", "service"}


def test_the_config_map_carries_the_dashboard() -> None:
    values = merged(REQUIRED, {"monitoring": {"dashboard": {"enabled": True}}})
    (found,) = (
        item
        for item in of_kind(render(values), "ConfigMap")
        if "dashboard" in item["metadata"]["name"]
    )
    assert json.loads(found["data"]["steno.json"]) == dashboard()
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert yaml.safe_load(found["data"]["steno.json"])["uid"] == "steno"
