# SPDX-License-Identifier: Apache-2.0
"""The Grafana dashboard and the alerts ask for the metrics that the provider sends, by the names they arrive under."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import yaml
from markdown_pages import ROOT, names, rows, section

GRAFANA = ROOT / "docs/grafana"
DASHBOARD = json.loads((GRAFANA / "gptimg-dashboard.json").read_text())
ALERTS = yaml.safe_load((GRAFANA / "gptimg-alerts.yml").read_text())["groups"][0]["rules"]
SHOWN = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def sent() -> Iterator[tuple[str, str]]:
    """Yield name and kind of each metric, as the code sends it."""
    for path in (ROOT / "airflow_provider_gptimg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            called = ast.unparse(node.func).rpartition(".")[2]
            if called == "count" and isinstance(node.args[0].value, str) and isinstance(node.func, ast.Name):
                yield f"gptimg.{node.args[0].value}", "incr"
            elif called in ("incr", "timing"):
                yield node.args[0].value, called


SENT = dict(sent())


def in_prometheus(name: str) -> str:
    """Return the name that OpenTelemetry's exporters give to a metric of Airflow in Prometheus."""
    dashed = f"airflow_{name.replace('.', '_')}"
    return f"{dashed}_total" if SENT[name] == "incr" else f"{dashed}_milliseconds_bucket"


def asked(expression: str) -> set[str]:
    return set(re.findall(r"airflow_\w+", expression))


def test_the_dashboard_shows_every_metric():
    assert set().union(*map(asked, SHOWN)) == set(map(in_prometheus, SENT))


def test_operating_describes_every_metric():
    assert set(names(rows(section("docs/operating.md", "Metrics, and what to alert on")))) >= set(SENT)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_metrics_that_are_sent(rule):
    assert asked(rule["expr"])
    assert asked(rule["expr"]) <= set(map(in_prometheus, SENT))
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]


def test_outcomes_that_are_asked_for_exist():
    table = (ROOT / "docs/operating.md").read_text()
    for expression in [*SHOWN, *(rule["expr"] for rule in ALERTS)]:
        for outcome in re.findall(r'outcome="(\w+)"', expression):
            assert re.search(rf"\b{outcome}\b", table)


def test_panels_neither_overlap_nor_share_an_id():
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places
        assert max(x for x, _ in cells) < 24
        places |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_airflow_makes_a_counter_a_counter_and_a_time_a_histogram_in_milliseconds():
    otel_logger = pytest.importorskip("airflow.sdk._shared.observability.metrics.otel_logger")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    logger = otel_logger.SafeOtelLogger(provider)
    logger.incr("gptimg.credits", 2, tags={"outcome": "charged"})
    logger.timing("gptimg.completion_time", timedelta(seconds=2), tags={"outcome": "completed"})
    found: dict[str, Any] = {
        metric.name: metric
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert found["airflow.gptimg.credits"].data.is_monotonic
    time = found["airflow.gptimg.completion_time"]
    assert (time.unit, next(iter(time.data.data_points)).sum) == ("ms", 2000)
    provider.shutdown()
