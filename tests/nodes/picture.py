"""docs/dashboards.md: every query of the dashboards, and what a real run answers."""

import math
from collections.abc import Mapping, Sequence

from tests.chart import dashboards
from tests.nodes.monitoring import RATE_INTERVAL, Answer

SHOWN = 4
"""Series of a query that are shown, those that are 0 last; of more, how many there are."""
HEAD = f"""# What the dashboards show

Every query of the chart's two dashboards with what a real Prometheus answered: the last number of each series, of rates and increases the
highest. `make dashboards` writes this page. The run is one with tiny models, on a cluster with two nodes and no GPU; its teacher, judge and
augmentor are behind an endpoint that is busy at times. `$__rate_interval` was {RATE_INTERVAL}.
"""


def page(answers: Mapping[str, Sequence[Answer]], *, without: Mapping[str, str]) -> str:
    """`answers` by dashboard. `without`: why a panel has no data here."""
    parts = [HEAD]
    for name, given in answers.items():
        board = dashboards.load(name)
        parts.append(
            f"\n## {board['title']}\n\n{board['description']}\n\n| panel | query | answer |\n| --- | --- | --- |\n"
        )
        panel = None
        for answer in given:
            title = answer.query.panel if answer.query.panel != panel else ""
            panel = answer.query.panel
            parts.append(f"| {title} | `{_cell(answer.query.text)}` | {_cell(_told(answer, without.get(panel)))} |\n")
    return "".join(parts)


def _told(answer: Answer, why: str | None) -> str:
    if not answer.series:
        return f"none: {why}"
    told = sorted(answer.series.items(), key=lambda pair: (pair[1] == 0, pair[0]))[:SHOWN]
    more = len(answer.series) - SHOWN
    return "; ".join(f"{name}: {number(value, answer.query.unit)}" for name, value in told) + (
        f"; and {more} more" if more > 0 else ""
    )


def number(value: float, unit: str) -> str:
    """As a person would write it."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit in ("bytes", "Bps"):
        power = min(3, int(math.log(value, 1024))) if value >= 1 else 0
        return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}" + ("/s" if unit == "Bps" else "")
    ending = {"s": " s", "ops": "/s", "reqps": "/s", "flops": " FLOP/s"}.get(unit, "")
    return f"{value:.4g}{ending}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
