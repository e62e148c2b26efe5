"""The chart's dashboards and their queries, as Grafana would send them."""

import json
import re
from dataclasses import dataclass
from typing import Any

from tests.chart.values_table import CHART

FOLDER = CHART / "files" / "dashboards"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
STANDARD: dict[str, set[str]] = {
    name: set() for name in ("up", "process_resident_memory_bytes", "process_cpu_seconds_total")
}
"""What Prometheus makes of each scrape, and what its client library exports of each process."""


@dataclass(frozen=True)
class Query:
    panel: str
    unit: str
    text: str
    legend: str


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def queries(name: str) -> list[Query]:
    return [
        Query(panel["title"], panel["fieldConfig"]["defaults"]["unit"], target["expr"], target["legendFormat"])
        for panel in load(name)["panels"]
        for target in panel["targets"]
    ]


def filled(text: str, *, rate_interval: str = "1m", **variables: str) -> str:
    """A query with its variables in place; those that are not given are `x`."""
    text = text.replace("$__rate_interval", rate_interval)
    return re.sub(r"\$(\w+)", lambda match: variables.get(match[1], "x"), text)
