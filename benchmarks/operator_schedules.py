"""Many schedules whose slots come at the same moment: how long after it each run is there, and what a slot costs.

    python -m benchmarks.operator --only schedules     # with --quick: 50 of them

Their runs are somebody else's (`spec.managedBy`), so that nothing is measured but the schedules.
"""

import asyncio
import json
import time
from collections import Counter
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
