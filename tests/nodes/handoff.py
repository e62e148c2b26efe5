"""How long it takes from the last phase of a stage to the next stage's container, and from there to its first phase.

The container's start is that of its first process, as this machine's kernel has it: the API knows whole seconds only. So it
must be watched while it runs (`watching`), on the machine that runs the cluster.
"""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.cluster import cgroups
from tests.cluster.cluster import Cluster
from tests.cluster.processes import start_time
from tests.nodes.site import Run

EVERY_SECONDS = 0.5
"""A container that lives for less may be missed."""
Starts = dict[str, float]
"""Uid of a pod → when its trainer's first process was started, in seconds since 1970, to a hundredth."""


@dataclass(frozen=True)
class HandOff:
    before: str
    after: str
    container: float
    """Seconds from the end of the last phase to the start of the next container: ours, and Kubernetes'."""
    start_up: float
    """Seconds from there to the beginning of the first phase: the trainer's own."""

    def __str__(self) -> str:
        return f"{self.before:>10} → {self.after:<10} container {self.container:6.2f} s, first phase {self.start_up:6.2f} s later"


@contextmanager
def watching(cluster: Cluster) -> Iterator[Starts]:
    """Notes when trainers start, as long as the block lasts."""
    starts: Starts = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(EVERY_SECONDS):
            _note(cluster, starts)

    thread = threading.Thread(target=watch, name="starts", daemon=True)
    thread.start()
    try:
        yield starts
    finally:
        over.set()
        thread.join()


def hand_offs(run: Run, starts: Starts) -> list[HandOff]:
    """Of a run whose pods are still there, each stage's last one."""
    pods = {pod["metadata"]["labels"]["comd.dev/stage"]: pod for pod in run.pods()}
    stages = [entry["name"] for entry in run.status()["stages"]]
    phases = {stage: _phases(run.log(pods[stage])) for stage in stages}
    found = []
    for before, after in pairwise(stages):
        started = starts[pods[after]["metadata"]["uid"]]
        ended = phases[before][-1][1]
        found.append(HandOff(before, after, started - ended, phases[after][0][0] - started))
    return found


def _phases(lines: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Begin and end of each phase, as the supervisor tells them."""
    spans = []
    for line in lines:
        told = re.match(r"\w+ (?:finished|was there already, found) in ([\d.]+) s", line["message"])
        if told:
            end = datetime.fromisoformat(line["time"]).timestamp()
            spans.append((end - float(told[1]), end))
    return spans


def _note(cluster: Cluster, starts: Starts) -> None:
    root = cgroups.hierarchies()[0] / cluster.layout.name
    for folder in root.glob("node-*/kubepods/**/pod*"):
        uid = folder.name.removeprefix("pod")
        if uid in starts:
            continue
        for pid in _pids(folder):
            ticks = start_time(pid) if _is_trainer(pid) else None
            if ticks is not None:
                age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
                starts[uid] = time.time() - age
                break


def _pids(folder: Path) -> list[int]:
    """Of the pod's containers, oldest first."""
    pids: list[int] = []
    for file in folder.glob("*/cgroup.procs"):
        try:
            pids += [int(line) for line in file.read_text().split()]
        except OSError:  # it has just ended
            continue
    return sorted(pids)


def _is_trainer(pid: int) -> bool:
    try:
        return b"comd-trainer" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
