"""Alerts ask for metrics that are exported, by labels and values that there are, and each has a section in docs/runbooks.md."""

import re
from collections.abc import Iterable
from typing import Any, get_args

import pytest
from prometheus_client import CollectorRegistry

from comd_api.status import ExitClass, RunPhase
from comd_operator.runtime.metrics import Metrics
from comd_trainer.server import StageStatus
from tests.chart.helm import FULLNAME, NAMESPACE, Helm, Object
from tests.chart.values_table import CHART
from tests.unit.test_status_server import CONFIG

RULES: Object = {"monitoring": {"prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}}}}
_SELECTED = re.compile(r"(comd_\w+)\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)\s*=~?\s*"([^"]*)"')


@pytest.fixture
def alerts(helm: Helm) -> list[Object]:
    rule = helm.render(RULES).one("PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]


def exported(collected: Iterable[Any]) -> dict[str, set[str]]:
    """Each series' name, and its labels."""
    return {sample.name: set(sample.labels) for metric in collected for sample in metric.samples}


def operator_series() -> dict[str, set[str]]:
    metrics = Metrics()
    metrics.count_runs(list)
    metrics.watch_ages(lambda: {"jobs": 1.0})
    metrics.api_requests.labels(verb="get", resource="jobs", code="200").inc()
    metrics.stage_retries.labels(stage="round", exit_class="Failed").inc()
    return exported(metrics.registry.collect())


def trainer_series() -> dict[str, set[str]]:
    status = StageStatus(CONFIG)
    status.phase = "tune"
    registry = CollectorRegistry()
    registry.register(status)
    return exported(registry.collect())


def test_they_ask_for_what_is_exported(alerts: list[Object]) -> None:
    jobs = {
        f"{NAMESPACE}/{FULLNAME}": operator_series(),
        f"{NAMESPACE}/{FULLNAME}-trainer": trainer_series(),
    }
    scraped = {"job", "namespace", "pod", "run"}
    for alert in alerts:
        selected = _SELECTED.findall(alert["expr"])
        assert selected, alert
        assert len(re.findall(r"comd_\w+", alert["expr"])) == len(selected), "all of them say whose they are"
        for name, matchers in selected:
            asked = dict(_MATCHER.findall(matchers))
            series = jobs[asked["job"]]
            assert name in series, f"{alert['alert']}: nobody exports {name}"
            grouped = re.findall(r"by \(([^)]*)\)", alert["expr"])
            labels = {label.strip() for group in grouped for label in group.split(",")} - {"le"}
            assert set(asked) | labels <= series[name] | scraped, alert["alert"]
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
