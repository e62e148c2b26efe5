"""Alerts ask for metrics that are exported, by labels and values that there are, and each has a section in docs/runbooks.md."""

import re
from typing import get_args

import pytest

from comd_api.status import ExitClass, RunPhase
from tests.chart import exported
from tests.chart.helm import Helm, Object
from tests.chart.values_table import CHART

RULES: Object = {"monitoring": {"prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}}}}


@pytest.fixture
def alerts(helm: Helm) -> list[Object]:
    rule = helm.render(RULES).one("PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]


def test_they_ask_for_what_is_exported(alerts: list[Object]) -> None:
    jobs = exported.series()
    for alert in alerts:
        for name, asked in exported.selected(alert["expr"]):
            assert asked["job"] in jobs, f"{alert['alert']} says whose {name} is"
            series = jobs[asked["job"]]
            assert name in series, f"{alert['alert']}: nobody exports {name}"
            assert set(asked) | exported.grouped(alert["expr"]) <= series[name], alert["alert"]
            assert set(asked.get("phase", "Stalled").split("|")) <= set(get_args(RunPhase))
            assert set(asked.get("exit_class", "Failed").split("|")) <= set(get_args(ExitClass))


def test_they_say_what_they_are_about(alerts: list[Object]) -> None:
    sections = re.findall(r"^## (\w+)$", (CHART.parents[1] / "docs" / "runbooks.md").read_text(), re.MULTILINE)
    assert [alert["alert"] for alert in alerts] == sections
    for alert in alerts:
        assert alert["labels"]["severity"] in ("critical", "warning")
        said = alert["annotations"]
        assert set(said) == {"summary", "description", "runbook_url"}
        assert said["summary"].endswith(".")
        assert said["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"
        for label in re.findall(r"\$labels\.(\w+)", said["description"]):
            assert re.search(rf"by \([^)]*\b{label}\b", alert["expr"]), f"{alert['alert']} has no label {label}"


def test_where_runbooks_and_metrics_are_is_a_value(helm: Helm) -> None:
    values = {"runbookUrl": "https://wiki.example.com/comd", "operatorJob": "mine", "trainerJob": "theirs"}
    rule = helm.render({"monitoring": {"prometheusRule": {"enabled": True, **values}}}).one("PrometheusRule")
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    assert all(alert["annotations"]["runbook_url"].startswith("https://wiki.example.com/comd#") for alert in alerts)
    assert {job for alert in alerts for job in re.findall(r'job="([^"]*)"', alert["expr"])} == {"mine", "theirs"}
