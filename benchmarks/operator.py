"""The operator beside its floor, a bare client that makes the same writes: writes benchmarks/operator.md.

    make bench-operator            # or: python -m benchmarks.operator

Needs root and Linux, and starts its own API servers and nodes (tests/cluster). What is compared is measured in turn, in one run.
`--quick` makes sure that all of it works, and writes no figures.
"""

import argparse
import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.operator_client import Client
from benchmarks.operator_cluster import inside
from benchmarks.operator_handoff import measure
from benchmarks.operator_lives import lives
from benchmarks.operator_load import Load, Series, Who
from benchmarks.operator_program import ROOT, Program
from benchmarks.operator_report import BURST, QPS, Figures, circumstances, report
from benchmarks.operator_schedules import SECTION, due_at_once, section
from benchmarks.operator_schedules import figures as slot_figures

from tests.cluster.cluster import Cluster

FLOOR_WORKERS = 32
ORDERS: tuple[tuple[Who, Who], ...] = (("operator", "floor"), ("floor", "operator"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small numbers, no file")
    parser.add_argument(
        "--only",
        choices=["load", "handoff", "schedules"],
        help="one part; writes nothing but the section on schedules",
    )
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each, in turn (default: 3)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "operator.md")
    arguments = parser.parse_args()
    if arguments.only == "schedules":
        text = slots(quick=arguments.quick, repeat=arguments.repeat)
        print(text)
        if not arguments.quick:
            before = arguments.out.read_text().partition(SECTION)[0]
            arguments.out.write_text(f"{before.rstrip()}\n\n{text}")
        return 0
    begun, busy = time.monotonic(), [os.getloadavg()[0]]
    figures = Figures(repeat=arguments.repeat, floor_workers=FLOOR_WORKERS)
    if arguments.quick:
        figures = replace(figures, repeat=1, few=50, many=100, steady=100, limited=100, whole=10)
    if arguments.only != "handoff":
        with inside("comd-bench", nodes=0) as cluster:
            asyncio.run(load(figures, cluster))
        busy.append(os.getloadavg()[0])
    if arguments.only != "load":
        with inside("comd-bench", nodes=2) as cluster:
            figures.hand_offs = measure(cluster, chains=figures.repeat, trainer_runs=1 if arguments.quick else 2)
        busy.append(os.getloadavg()[0])
    text = report(figures, minutes=(time.monotonic() - begun) / 60, busy=busy)
    if arguments.only is None:
        text = f"{text.rstrip()}\n\n{slots(quick=arguments.quick, repeat=figures.repeat)}"
    print(text)
    if not arguments.quick and arguments.only is None:
        arguments.out.write_text(text)
    return 0


def slots(*, quick: bool, repeat: int) -> str:
    """The section on schedules."""
    begun, busy = time.monotonic(), [os.getloadavg()[0]]
    with inside("comd-bench", nodes=0) as cluster:
        taken, limited = asyncio.run(schedules(cluster, count=50 if quick else 2000, repeat=1 if quick else repeat))
    busy.append(os.getloadavg()[0])
    command = "`python -m benchmarks.operator --only schedules`"
    told = circumstances(command, minutes=(time.monotonic() - begun) / 60, busy=busy)
    return section(taken, limited, qps=QPS, circumstances=told)


async def schedules(cluster: Cluster, *, count: int, repeat: int) -> tuple[list[Series], Series]:
    """Without the rate limit, and with the one that the operator has by default."""
    taken: list[Series] = []
    async with Client.connected() as client:
        measured = Load(client, cluster, workers=FLOOR_WORKERS)
        with measured.controllers_stopped():
            for _ in range(repeat):
                taken.append(await due_at_once(measured, count))
                print(slot_figures(taken[-1]), flush=True)
            limited = await due_at_once(measured, count, qps=QPS, burst=BURST)
            print(f"at {QPS:g} requests/s: {slot_figures(limited)}", flush=True)
    return taken, limited


async def load(figures: Figures, cluster: Cluster) -> None:
    """Everything on an API server without nodes."""
    async with Client.connected() as client:
        load = Load(client, cluster, workers=FLOOR_WORKERS)
        with load.controllers_stopped():
            for turn in range(figures.repeat):
                for who in ORDERS[turn % 2]:
                    keep(figures.backlog, await load.backlog(who, figures.few))
                    keep(figures.burst, await load.arriving(who, figures.few))
                    keep(figures.trickle, await load.arriving(who, figures.steady, per_second=figures.per_second))
            keep(figures.flood, await load.arriving("floor", figures.many))

        async def with_pods(namespace: str, program: Program) -> None:
            """The controllers go on, and make a pod for each Job."""
            with load.controllers_go_on():
                await load.until_pods(namespace, figures.many)
                await program.rest()
            figures.rss_with_pods = program.rss_mib()

        with load.controllers_stopped():
            keep(figures.flood, await load.arriving("operator", figures.many, afterwards=with_pods))
        figures.limited_series = await load.arriving("operator", figures.limited, qps=QPS, burst=BURST)
        figures.lives = await lives(load, count=figures.whole, finished=figures.few)


def keep(taken: list[Series], series: Series) -> None:
    taken.append(series)
    print(
        f"{series.who:8} {series.count:5} runs: {series.rate:6.1f}/s, p50 {series.median:.3f} s, p99 {series.quantile(0.99):.3f} s, "
        f"CPU {series.cpu:.2f} s, RSS {series.rss:.0f} MiB",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
