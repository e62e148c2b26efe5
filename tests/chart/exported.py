"""What alerts and dashboards may ask for: the series of operator and trainer, by the job that scrapes them."""

import re

from tests import metrics_table
from tests.chart.helm import FULLNAME, NAMESPACE

OPERATOR, TRAINER = f"{NAMESPACE}/{FULLNAME}", f"{NAMESPACE}/{FULLNAME}-trainer"
"""As the Prometheus operator calls what the chart's PodMonitors find."""
SCRAPED = {
    OPERATOR: {"job", "namespace", "pod", "container", "instance", "endpoint"},
    TRAINER: {"job", "namespace", "pod", "container", "instance", "endpoint", "run", "attempt"},
}
"""Labels that Prometheus adds, the PodMonitors' relabelings included."""
_SELECTED = re.compile(r"\b([a-z_]\w*)\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!=|!~|=)\s*"([^"]*)"')
_GROUPED = re.compile(r"\bby \(([^)]*)\)")


def series() -> dict[str, dict[str, set[str]]]:
    """By job: each series' name and all labels that it has in Prometheus."""
    own = {
        OPERATOR: metrics_table.series_of(metrics_table.operator_rows()),
        TRAINER: metrics_table.series_of(metrics_table.trainer_rows()),
    }
    return {job: {name: labels | SCRAPED[job] for name, labels in found.items()} for job, found in own.items()}


def selected(query: str) -> list[tuple[str, dict[str, str]]]:
    """Each series that a query asks for, and what its labels must be. Fails where one says nothing of its labels."""
    found = [(name, dict(_MATCHER.findall(matchers))) for name, matchers in _SELECTED.findall(query)]
    assert found, query
    assert len(re.findall(r"\bcomd_\w+", query)) == sum(name.startswith("comd_") for name, _ in found), query
    return found


def grouped(query: str) -> set[str]:
    """Labels that a query keeps."""
    return {label.strip() for group in _GROUPED.findall(query) for label in group.split(",")}
