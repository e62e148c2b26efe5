"""benchmarks/operator.md, from what was measured."""

import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.operator_handoff import HandOffs
from benchmarks.operator_lives import Lives
from benchmarks.operator_load import Series, Who
from benchmarks.operator_program import ROOT

QPS, BURST = 50, 100
"""As the operator is shipped."""
REQUESTS_PER_RUN = 3
"""To begin one: its Job, its status, an Event."""


@dataclass(kw_only=True)
class Figures:
    repeat: int
    floor_workers: int
    few: int = 1_000
    many: int = 5_000
    steady: int = 1_000
    per_second: float = 50.0
    limited: int = 300
    whole: int = 200
    backlog: list[Series] = field(default_factory=list)
    burst: list[Series] = field(default_factory=list)
    trickle: list[Series] = field(default_factory=list)
    flood: list[Series] = field(default_factory=list)
    limited_series: Series | None = None
    rss_with_pods: float = 0.0
    lives: Lives | None = None
    hand_offs: HandOffs | None = None


def circumstances(command: str, *, minutes: float, busy: Sequence[float]) -> str:
    """Command, commit, machine. busy: load averages."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()
    model = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"""{command}, commit {commit}, {datetime.now(UTC):%Y-%m-%d},
{os.cpu_count()} shared cores ({model[0] if model else platform.machine()}), Python {platform.python_version()}, {minutes:.0f} minutes;
load average {", then ".join(f"{value:.1f}" for value in busy)}."""


def report(figures: Figures, *, minutes: float, busy: Sequence[float]) -> str:
    command = f"`make bench-operator` (`python -m benchmarks.operator --repeat {figures.repeat}`)"
    parts = [
        f"""# The operator beside its floor

{circumstances(command, minutes=minutes, busy=busy)}
API server, etcd, operator and benchmark share the cores, so absolute figures are this machine's; what is compared took turns.
Medians of {figures.repeat} turns, ranges in brackets."""
    ]
    if figures.backlog:
        parts.append(_of_load(figures))
    if figures.lives is not None:
        parts.append(_of_lives(figures.lives))
    if figures.hand_offs is not None:
        parts.append(_of_hand_offs(figures.hand_offs))
    return "\n\n".join(parts) + "\n"


def _of_load(figures: Figures) -> str:
    few, many, steady = f"{figures.few:,}", f"{figures.many:,}", f"{figures.per_second:g} runs/s"
    rows = [
        *_rows(f"{few} runs wait when it starts", figures.backlog, rate=True),
        *_rows(f"{few} runs made at once", figures.burst, rate=True, delays=True),
        *_rows(f"{many} runs made at once", figures.flood, rate=True, delays=True),
        *_rows(f"{steady} for {figures.steady / figures.per_second:.0f} s", figures.trickle, delays=True),
    ]
    table, workers = "\n".join(rows), figures.floor_workers
    return f"""## From a run to its first Job

The floor is a bare asynchronous client with the operator's TLS and connections, {workers} runs at a time: for each run it POSTs the same
Job, PATCHes the same status and POSTs the same Event, from texts that are ready. Both are processes of their own without a
rate limit, and the controllers are stopped meanwhile. A delay is from a run's POST to its Job at a third party's watch. The last
column is the median of the ratios of neighbours in time.

| | operator | floor | ratio |
| --- | --- | --- | --- |
{table}

{_of_memory(figures)}

{_of_limit(figures)}"""


def _rows(what: str, taken: list[Series], *, rate: bool = False, delays: bool = False) -> list[str]:
    """Without delays the programs have just started, and most of their CPU went into that."""
    rows: list[tuple[str, Callable[[Series], float], str]] = []
    if rate:
        rows.append(("Jobs/s", lambda series: series.rate, ".0f"))
    if delays:
        rows.append(("p50, ms", lambda series: 1000 * series.median, ",.0f"))
        rows.append(("p99, ms", lambda series: 1000 * series.quantile(0.99), ",.0f"))
        rows.append(("its CPU, ms for each run", lambda series: 1000 * series.cpu / series.count, ".1f"))
    return [f"| {what}: {name} | {_pair(taken, value, form)} |" for name, value, form in rows]


def _pair(taken: list[Series], value: Callable[[Series], float], form: str) -> str:
    """Operator, floor, and the median of the ratios of neighbours."""

    def of(who: Who) -> list[float]:
        return [value(series) for series in taken if series.who == who]

    ours, theirs = of("operator"), of("floor")
    ratios = [mine / floor for mine, floor in zip(ours, theirs, strict=True)]
    return f"{middle(ours, form)} | {middle(theirs, form)} | {middle(ratios, '.2f')}"


def middle(values: list[float], form: str = ".2f") -> str:
    """Median and range."""
    text = format(statistics.median(values), form)
    return text if len(values) == 1 else f"{text} ({min(values):{form}}–{max(values):{form}})"


def _of_memory(figures: Figures) -> str:
    few = [series for series in figures.burst if series.who == "operator"]
    flood = next(series for series in figures.flood if series.who == "operator").rss
    none, some = (middle(values, ".0f") for values in ([one.rss_before for one in few], [one.rss for one in few]))
    return f"""Memory of the operator at rest (RSS, MiB): {none} without runs; {some} with {figures.few:,} runs and their Jobs;
{flood:.0f} with {figures.many:,} runs and their Jobs; {figures.rss_with_pods:.0f} with their {figures.many:,} pods besides, which no
scheduler takes (aim: < 150)."""


def _of_limit(figures: Figures) -> str:
    series = figures.limited_series
    assert series is not None, "it was measured with the others"
    least = (REQUESTS_PER_RUN * series.count - BURST) / QPS
    return f"""As shipped ({QPS} requests a second, {BURST} at once), with the controllers at work: {series.count} runs made at once have
their Jobs after {series.seconds:.1f} s. At that limit {REQUESTS_PER_RUN} requests for each take {least:.1f} s: it is
{series.seconds / least:.2f} times that (aim: ≤ 1.10)."""


def _of_lives(lives: Lives) -> str:
    transitions = lives.count * (lives.stages + 1)
    per_run = ", ".join(f"{what} {_plain(count / lives.count)}" for what, count in sorted(lives.writes.items()))
    events = lives.writes["create events"]
    writes = sum(lives.writes.values()) - events
    again = "; ".join(f"{sum(writes.values())} beside {what}" for what, writes in lives.again.items())
    return f"""## Writes

{lives.count} whole runs of {lives.stages} stages, made at once, with the real controllers; a simulator ends pods as soon as they are there.
All had ended after {lives.seconds:.0f} s, at {1000 * lives.cpu / transitions:.1f} ms of the operator's CPU for each transition.

- For each run: {per_run}.
- For each of its {lives.stages + 1} transitions (it begins, hands over, ends): {writes / transitions:.2f} writes and
  {events / transitions:.2f} Events (aim: ≤ 2 and ≤ 1).
- By an operator that is started where all have ended: {again} (aim: 0)."""


def _plain(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _of_hand_offs(found: HandOffs) -> str:
    ratio = statistics.median(found.operator) / statistics.median(found.floor)
    return f"""## From one stage to the next, on real nodes

Seconds from the end of a stage's container to the beginning of the next one's, as written inside them. The floor watches pods
and POSTs the same Jobs, which lie ready, when a container has `terminated`; its chains of 7 stages and the operator's take turns.
The kubelet, which looks for ends once a second, and the start of a pod are nearly all of it.

| | hand-overs | median (range) |
| --- | --- | --- |
| operator, a stand-in for the trainer | {len(found.operator)} | {middle(found.operator)} |
| floor, the same stand-in | {len(found.floor)} | {middle(found.floor)} |
| ratio of the medians (aim: ≤ 1.2) | | {ratio:.2f} |
| operator, the real trainer | {len(found.trainer)} | {middle(found.trainer)} |

The real trainer's own part, on tiny models, over {len(found.start)} stages: from its container's beginning to its first phase
{middle(found.start)}, from the end of its last phase to its container's {middle(found.end)}.
Writes of our own in a chain of 7 stages: {middle(found.writes)} for each stage ({middle(found.events)} Events). That is
two for each hand-over, and one more at the end of the run."""
