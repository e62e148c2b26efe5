"""Nodes of a stage as processes on this machine: each with a scratch folder of its own, all with one store and one address.

A node is what a pod runs, `comd-trainer run`, but forked from a server that has imported everything, and its own fork server is forked
too: so it starts in a second instead of ten. Its ranks end with it, as a container's do.
"""

import json
import multiprocessing.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from comd_api.profile import resolve
from comd_api.run import RunSpec
from comd_api.stage import StageConfig, StageResult
from comd_api.stages import phases_of
from comd_api.status import ArtifactRef, PhaseName
from tests.e2e.runs import contents
from tests.e2e.world import manifest
from tests.training.ranks import SPAWN

NUM_PORTS = 8
"""The supervisors' own, and one for each phase."""


@dataclass(kw_only=True)
class Stage:
    """A tiny run in a folder, stage by stage: `store`, and for each node `node-N` with its scratch, log and termination message."""

    folder: Path
    num_nodes: int
    num_proc: int
    changes: dict[str, Any] = field(default_factory=dict)
    """Of the spec."""
    storage: dict[str, Any] = field(default_factory=dict)
    """In place of the folder `store`."""
    phases: list[PhaseName] | None = None
    """Of stages but `preflight`, as with `execution: Phase`; None for all."""
    forked: bool = True
    """False: the command itself, which imports all for itself and ends with the interpreter's own end."""
    environments: dict[int, dict[str, str]] = field(default_factory=dict)
    """What a node has in its environment besides."""
    inputs: list[ArtifactRef] = field(default_factory=list)
    processes: list[Any] = field(default_factory=list)
    port: int = 0

    def config(self, stage: str) -> StageConfig:
        document = manifest(**self.changes)["spec"]
        document = {name: value for name, value in document.items() if value is not None}
        document["storage"] = self.storage or {"uri": (self.folder / "store").as_uri()}
        document["trainer"] = {"numNodes": self.num_nodes, "numProcPerNode": self.num_proc}
        spec = resolve(RunSpec.model_validate(document))
        number = int(stage.removeprefix("round-")) if stage.startswith("round-") else 0
        return StageConfig(
            namespace="default",
            run="tiny",
            stage=stage,
            round=number,
            last_round=number == spec.rounds.count,
            phases=self.phases if self.phases and stage != "preflight" else phases_of(spec, stage),
            spec=spec,
            inputs=[ref for ref in self.inputs if number or ref.name == "preflight"],
        )

    def run(self, stage: str, *, timeout: float = 240) -> list[int]:
        """All nodes from beginning to end: their exit codes. What node 0 has made is an input of the next stage."""
        self.start(stage)
        codes = self.wait(timeout=timeout)
        if codes == [0] * len(codes):
            made = self.result(0).artifacts
            self.inputs = [ref for ref in self.inputs if ref.name not in {new.name for new in made}] + made
        return codes

    def start(self, stage: str, *, pause: float = 0.0) -> None:
        """The last node first, with a pause before each other one."""
        config = self.config(stage)
        count = 1 if stage == "preflight" else self.num_nodes
        self.port = free_ports(NUM_PORTS)
        self.processes = []
        for rank in reversed(range(count)):
            self.processes.insert(0, self._node(config, rank))
            time.sleep(pause if rank else 0.0)

    def _node(self, config: StageConfig, rank: int) -> Any:
        home = self.folder / f"node-{rank}"
        home.mkdir(exist_ok=True)
        (home / "config.json").write_text(json.dumps(config.to_wire()))
        (home / "termination.json").unlink(missing_ok=True)
        arguments = ["run", "--config", home / "config.json", "--termination-message", home / "termination.json"]
        arguments += ["--scratch", home / "scratch", "--rendezvous", f"localhost:{self.port}"]
        environment = {
            **os.environ,
            **self.environments.get(rank, {}),
            "JOB_COMPLETION_INDEX": str(rank),
            "OMP_NUM_THREADS": "1",
        }
        words = [str(word) for word in arguments]
        if not self.forked:
            with (home / "log.txt").open("wb") as log:
                return Command([sys.executable, "-m", "comd_trainer", *words], env=environment, stdout=log, stderr=log)
        process = SPAWN.Process(target=_node, args=(words, environment, str(home / "log.txt")))
        process.start()
        return process

    def wait(self, *, timeout: float = 240) -> list[int]:
        """Exit codes, negative for a signal. Who has not ended in time is killed."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        self.kill()
        assert not late, f"nodes {late} did not end within {timeout:g} s: {self.log(late[0])[-3000:]}"
        return [int(process.exitcode) for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def signal(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.processes[rank].pid, number)

    def log(self, rank: int) -> str:
        return (self.folder / f"node-{rank}" / "log.txt").read_text()

    def result(self, rank: int) -> StageResult:
        text = (self.folder / f"node-{rank}" / "termination.json").read_text()
        return StageResult.model_validate(json.loads(text))

    def contents(self) -> dict[str, str]:
        """SHA-256 of every file of every artifact in the folder `store`."""
        return contents(self.folder)

    def steps_done(self, stage: str, phase: str) -> int:
        """What rank 0 says of a phase under way."""
        for file in (self.folder / "node-0" / "scratch" / stage).glob(f"{phase}-*/progress.json"):
            with suppress(FileNotFoundError):
                return int(json.loads(file.read_text())["done"])
        return 0

    def losses(self, stage: str, phase: str) -> list[float]:
        file = next((self.folder / "store/default/tiny" / stage / phase).glob("*/*/training.jsonl"))
        return [json.loads(line)["loss"] for line in file.read_text().splitlines()]

    def wait_until(self, seen: Callable[[], object], *, timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while not seen():
            assert time.monotonic() < deadline, self.log(0)[-3000:]
            assert all(process.is_alive() for process in self.processes), self.log(0)[-3000:]
            time.sleep(0.01)

    def checkpoints(self) -> list[str]:
        """Names of checkpoints that some rank has begun to keep."""
        found = (self.folder / "store").glob("default/tiny/*/*/*/partial/checkpoints/*/step-*/rank-*/manifest.json")
        return sorted({path.parent.parent.name for path in found})

    def rank_processes(self, rank: int) -> Iterator[psutil.Process]:
        """Processes that the node's fork server has forked: its ranks."""
        for server in psutil.Process(self.processes[rank].pid).children():
            yield from server.children()


class Command(subprocess.Popen[bytes]):
    """A command as multiprocessing would speak of it."""

    def is_alive(self) -> bool:
        return self.poll() is None

    def join(self, timeout: float | None = None) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(timeout=timeout)

    @property
    def exitcode(self) -> int | None:
        return self.poll()


@contextmanager
def ended(stage: Stage) -> Iterator[Stage]:
    """Leaves no process behind."""
    try:
        yield stage
    finally:
        stage.kill()


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row."""
    for first in range(21_000 + os.getpid() % 500 * 20, 32_000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


def _node(arguments: Sequence[str], environment: dict[str, str], log: str) -> None:
    from comd_trainer.cli import main

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.util.spawnv_passfds = _fork_server  # type: ignore[assignment]
    sys.exit(main(list(arguments)))


_spawnv_passfds = multiprocessing.util.spawnv_passfds


def _fork_server(path: bytes, arguments: Sequence[Any], descriptors: Sequence[int]) -> int:
    """In place of starting an interpreter that imports all for itself: a fork of this process, which has. It keeps no other descriptor, as
    one that was started would not: the server ends when the last holder of its pipe does."""
    code = arguments[-1]
    if "multiprocessing.forkserver" not in str(code):
        return int(_spawnv_passfds(path, arguments, descriptors))
    process = os.fork()
    if process:
        return process
    kept = {0, 1, 2, *descriptors}
    for descriptor in range(3, 4096):
        if descriptor not in kept:
            with suppress(OSError):
                os.close(descriptor)
    try:
        exec(code, {})
    finally:
        os._exit(0)
