"""The tables of docs/metrics.md, made of what operator and trainer export. `python -m tests.metrics_table` writes them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_api.status import PhaseTime
from comd_operator.runtime.metrics import Metrics
from comd_trainer import metrics
from comd_trainer.context import PROGRESS_FILE
from comd_trainer.server import StageStatus
from tests.unit.rule_examples import manifest

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
OWN = "comd_"
"""How our metrics begin; those of Python and of the process are the client library's."""
UNITS = {"_time_seconds": "s since 1970", "_flops_per_second": "1/s", "_seconds": "s", "_bytes": "B"}
"""By how a name ends, first of all without `_total`."""


@dataclass(frozen=True)
class Row:
    """One metric, as a scrape shows it."""

    name: str
    """A counter's with `_total`, a histogram's without `_bucket`."""
    type: str
    labels: tuple[str, ...]
    text: str

    @property
    def unit(self) -> str:
        name = self.name.removesuffix("_total")
        return next((unit for end, unit in UNITS.items() if name.endswith(end)), "")


def trainer_rows() -> list[Row]:
    """Of a stage in its phase `tune`, in which everything has been counted."""
    record = metrics.Record()
    for metric in metrics.ALL:
        labels = dict.fromkeys(metric.labels, "x")
        record.add(metric, **labels) if metric.kind == "counter" else record.put(metric, 1.0, **labels)
    spec = RunSpec.model_validate(manifest()["spec"])
    config = StageConfig(namespace="team", run="a-run", stage="round-1", phases=["teach", "tune"], spec=spec)
    status = StageStatus(config, own=record)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(status)
    with TemporaryDirectory() as folder:
        (Path(folder) / PROGRESS_FILE).write_text(json.dumps({"done": 1, "total": 2, "rate": 1.0, "time": 1.0}))
        status.begin("tune", [PhaseTime(name="teach", seconds=1.0)])
        status.watch(Path(folder))
        return rows_of(scraped(registry))


def operator_rows() -> list[Row]:
    """Of one that has met everything once."""
    made = Metrics()
    made.count_runs(list)
    made.watch_ages(lambda: {"jobs": 1.0})
    for value in vars(made).values():
        if names := getattr(value, "_labelnames", ()):
            value.labels(**dict.fromkeys(names, "x"))
    return rows_of(scraped(made.registry))


def scraped(registry: CollectorRegistry) -> list[Family]:
    return list(text_string_to_metric_families(generate_latest(registry).decode()))


def rows_of(families: Iterable[Family]) -> list[Row]:
    """Our own metrics, sorted by name."""
    rows = []
    for family in families:
        if family.name.startswith(OWN) and family.samples:
            labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append(Row(name, family.type, tuple(labels), family.documentation))
    return sorted(rows, key=lambda row: row.name)


def series_of(rows: Iterable[Row]) -> dict[str, set[str]]:
    """Each series' name as it can be queried, and its labels."""
    found: dict[str, set[str]] = {}
    for row in rows:
        if row.type == "histogram":
            found |= {f"{row.name}_{part}": set(row.labels) for part in ("sum", "count")}
            found[f"{row.name}_bucket"] = {*row.labels, "le"}
        else:
            found[row.name] = set(row.labels)
    return found


def table(rows: Iterable[Row]) -> str:
    lines = ["| metric | type | labels | unit | what |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        lines.append(f"| `{row.name}` | {row.type} | {labels} | {row.unit} | {row.text} |")
    return "\n".join(lines) + "\n"


def with_tables(text: str) -> str:
    """The page with the tables as they should be."""
    for who, rows in (("trainer", trainer_rows()), ("operator", operator_rows())):
        begin, end = f"<!-- {who}: made of what is exported -->\n", f"<!-- end of {who} -->\n"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}{table(rows)}{end}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
