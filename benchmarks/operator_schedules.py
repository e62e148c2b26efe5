"""Many schedules whose slots come at the same moment: how long after it each run is there, and what a slot costs.

    python -m benchmarks.operator --only schedules     # with --quick: 50 of them

Their runs are somebody else's (`spec.managedBy`), so that nothing is measured but the schedules.
"""

import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks.operator_bodies import NAME, run_manifest, run_name
from benchmarks.operator_client import Write
from benchmarks.operator_load import CREATORS, Load, Series

from comd_api import API_VERSION
from comd_api.kinds import RUN, SCHEDULE
from comd_operator.runtime.api import namespaced

MADE_PER_SECOND, SPARE_SECONDS = 40.0, 30.0
"""For which the slot is far enough away: schedules are made, and seen for the first time, before it comes."""


async def due_at_once(load: Load, count: int, *, qps: float = 0.0, burst: int = 100) -> Series:
    """delays: from the slot to each run at a watch. writes: of the operator from the slot on."""
    async with load.place() as namespace, load.program("operator", namespace, qps=qps, burst=burst) as program:
        slot = _whole_minute(datetime.now(UTC) + timedelta(seconds=count / MADE_PER_SECOND + SPARE_SECONDS))
        await _make_schedules(load, namespace, count, slot=slot)
        await program.rest()
        left = (slot - datetime.now(UTC)).total_seconds()
        if left <= 0:
            raise RuntimeError(
                f"the slot came {-left:.0f} s before all schedules were made and seen; the machine is too busy"
            )
        moment = time.monotonic() + left
        series = Series("operator", count, rss_before=program.rss_mib())
        cpu, before = program.cpu_seconds(), await program.writes()
        async with load.arrivals(namespace, namespaced(API_VERSION, RUN.plural, namespace)) as arrivals:
            await arrivals.all(count, most=left + 300 + count / 10)
        await program.rest()
        series.cpu, series.rss = program.cpu_seconds() - cpu, program.rss_mib()
        series.writes = Counter(await program.writes())
        series.writes.subtract(before)
    series.delays = [at - moment for at in arrivals.at.values()]
    series.seconds = max(series.delays)
    return series


SECTION = "## From a slot to its run"


def section(taken: Sequence[Series], limited: Series, *, qps: float, circumstances: str) -> str:
    """Of benchmarks/operator.md, its last one: it may be measured by itself."""
    count = taken[0].count
    rows = [
        ("slot to run p50, s", [series.median for series in taken], limited.median),
        ("slot to run p99, s", [series.quantile(0.99) for series in taken], limited.quantile(0.99)),
        ("slot to last run, s", [series.seconds for series in taken], limited.seconds),
        ("runs made, per second", [series.rate for series in taken], limited.rate),
        ("writes per slot", [writes_per_slot(series) for series in taken], writes_per_slot(limited)),
        ("operator's CPU, ms per slot", [1000 * series.cpu / count for series in taken], 1000 * limited.cpu / count),
        ("RSS afterwards, MiB", [series.rss for series in taken], limited.rss),
    ]
    lines = [f"| {name} | {_middle(values)} | {_number(value)} |" for name, values, value in rows]
    kinds = ", ".join(
        f"{what} {count / taken[0].count:.2f}" for what, count in sorted(taken[0].writes.items()) if count
    )
    return "\n".join(
        [
            SECTION,
            "",
            f"{circumstances}",
            f"{count:,} schedules whose slot is the same minute. Their runs are somebody else's (`spec.managedBy`), so that nothing",
            "but the schedules is measured: for each slot a POST of the run, a PATCH of the schedule's status and a POST of the Event.",
            "A delay is from the slot to the run at a third party's watch.",
            f"Medians of {len(taken)} turns, ranges in brackets.",
            "",
            f"| {count:,} schedules due at once | without a rate limit | as shipped ({qps:g} requests/s) |",
            "| --- | --- | --- |",
            *lines,
            "",
            f"Writes for each slot: {kinds}.",
            "",
        ]
    )


def writes_per_slot(series: Series) -> float:
    return sum(series.writes.values()) / series.count


def _middle(values: Sequence[float]) -> str:
    return f"{_number(statistics.median(values))} ({_number(min(values))}–{_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def figures(series: Series) -> str:
    each = {what: count / series.count for what, count in sorted(series.writes.items()) if count}
    writes = ", ".join(f"{count:.2f} {what}" for what, count in each.items())
    return (
        f"{series.count} schedules due at once: slot to run p50 {series.median:.3f} s, p99 {series.quantile(0.99):.3f} s, "
        f"last {series.seconds:.3f} s; {sum(each.values()):.2f} writes per slot ({writes}); "
        f"CPU {series.cpu:.2f} s, RSS {series.rss_before:.0f} to {series.rss:.0f} MiB"
    )


async def _make_schedules(load: Load, namespace: str, count: int, *, slot: datetime) -> None:
    path = namespaced(API_VERSION, SCHEDULE.plural, namespace)
    body = json.dumps(_manifest(slot))
    limit = asyncio.Semaphore(CREATORS)

    async def make(name: str) -> None:
        async with limit:
            await load.client.write(Write("POST", path, body.replace(NAME, name)))

    await asyncio.gather(*(make(run_name(number)) for number in range(count)))


def _manifest(slot: datetime) -> dict[str, Any]:
    spec = {**run_manifest(NAME)["spec"], "managedBy": "example.com/nobody"}
    return {
        "apiVersion": API_VERSION,
        "kind": SCHEDULE.name,
        "metadata": {"name": NAME},
        "spec": {"schedules": [f"{slot.minute} {slot.hour} * * *"], "runTemplate": {"spec": spec}},
    }


def _whole_minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
