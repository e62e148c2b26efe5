"""What the supervisors of a stage's nodes tell each other, so that all do the same: node 0 decides, the others follow.

Node 0 keeps a small store in memory (torch's TCPStore). Each node has one key there, its board, which it alone writes, ten times a
second; node 0 reads all boards, the others read node 0's. A board that stands still is how a lost node is noticed. Boards are JSON:
the port is open to whoever reaches the pods, as torch's own are, and nothing from it is run.

Imports torch only inside functions; a stage on one node does not import this module at all.
"""

import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from comd_api.exit_codes import BadDataError, ComdError, TryAgainError, UserError
from comd_api.status import ExitClass
from comd_trainer.context import PreemptedError
from comd_trainer.launcher import ElsewhereError, LostPeerError, exit_class_of
from comd_trainer.worker import Kind, describe_error

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
SILENCE_SECONDS = 15.0
"""A node that says nothing for so long is lost."""
SUSPICION_SECONDS = 5.0
"""The same once a failure has been met, which may be that it is lost."""
SETTLE_SECONDS = 1.0
"""From the first failure to the verdict: the node that was the cause may be the second to say so."""
JOIN_SECONDS = 600.0
"""Until all nodes are there; one of them may still be pulling the image."""
REQUEST_SECONDS = timedelta(seconds=30)
GOODBYE_SECONDS = 30.0
"""How long node 0, whose store all read, stays for those that don't know of the end yet."""
STOPPED_SECONDS = 5.0
"""What a node that was asked to stop still waits for others."""
FORESEEN: tuple[ExitClass, ...] = ("UserError", "BadData", "TryAgain")
"""Ends that no lost node brings about, the first to be told first."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How the stage ended on one node."""

    exit_class: ExitClass
    message: str
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class End:
    """How the stage ended, on all nodes. Said once, by node 0."""

    why: Literal["done", "failed", "vanished", "stopped"]
    node: int = 0
    """Whose doing it was."""
    message: str = ""
    exit_class: ExitClass = "TryAgain"
    """How that node ended. All end alike."""


class Report(NamedTuple):
    failure: Failure
    arrived: float
    """When node 0 read it, by its monotonic clock: clocks of different nodes are not compared."""


class Nodes:
    """This node's part. The thread `nodes` alone talks to the store, so that a store that hangs holds up nobody."""

    def __init__(self, *, rank: int, num: int, rendezvous: str, stop: threading.Event, patience: float = JOIN_SECONDS):
        """`rank`: this node's, from 0. `rendezvous`: `host:port` of node 0. `stop`: set by this node's SIGTERM, and here when another
        node got one. Raises UserError for a rank or an address that can't be."""
        if not 0 <= rank < num:
            raise UserError(f"--node-rank is {rank}, but spec.trainer.numNodes is {num}; give 0 to {num - 1}")
        host, _, port = rendezvous.rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"--rendezvous is {rendezvous!r}; give host:port of the first node")
        self.rank, self.num, self.host, self.port = rank, num, host.strip("[]"), int(port)
        self._stop, self._patience = stop, patience
        self._lock = threading.Lock()
        self._board: dict[str, Any] = {"beat": 0, "stop": False, "failure": None, "knows": False}
        """What this node says. Node 0 adds `decisions`, `stoppedBy`, `all` and `end`."""
        self._first: dict[str, Any] = self._board if rank == 0 else {}
        """What node 0 says."""
        self._boards: dict[int, dict[str, Any]] = {}
        """Node 0: what the others say."""
        self._heard: dict[int, float] = {}
        """When a board was last seen to change: at node 0 those of all others, elsewhere that of node 0."""
        self._reports: dict[int, Report] = {}
        self._broken: str | None = None
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._talk, name="nodes", daemon=True)
        if rank == 0:
            self._board |= {"decisions": {}, "stoppedBy": None, "all": False, "end": None}

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def meeting(self, number: int) -> str:
        """`host:port` where the ranks of the stage's phase `number` (from 0) meet: each phase has a port of its own, so that none waits for
        the one before to let go of it. Node 0 need not find itself by name."""
        return f"{'127.0.0.1' if self.is_first else self.host}:{self.port + 1 + number}"

    def start(self) -> None:
        """Begins to look for the others, while the caller does something else."""
        self._thread.start()

    def wait_for_all(self) -> None:
        """Until every node is there. Raises TryAgainError when one does not come, and as `hear` does."""
        deadline = time.monotonic() + self._patience
        self._wait(lambda: bool(self._first.get("all")) or time.monotonic() > deadline)
        if self._first.get("all"):
            return
        if self.is_first or self._heard:
            raise TryAgainError(f"not all of the {self.num} nodes came within {self._patience:g} s")
        raise TryAgainError(f"node 0 did not answer at {self.host}:{self.port} within {self._patience:g} s")

    def say(self, name: str, value: Any) -> None:
        """Node 0's word on something that all must do alike; `value` is JSON."""
        assert self.is_first
        # Nothing is begun with a node that has failed already, even if it is not yet known whose doing that was.
        self._wait(lambda: not self._reports)
        with self._lock:
            self._board["decisions"][name] = value
        self._wake.set()

    def hear(self, name: str) -> Any:
        """Waits for node 0's word, however long that takes. Raises ElsewhereError when the stage ends instead, PreemptedError when it is
        stopped."""
        self._wait(lambda: name in self._first.get("decisions", {}))
        return self._first["decisions"][name]

    def over(self) -> bool:
        """Whether the stage has ended, neither well nor by request: after a request there is time to save."""
        end = self._end()
        return end is not None and end.why in ("failed", "vanished")

    def report(self, error: Exception) -> None:
        """Says that this node can't go on. What it said first stands, unless that was only that it had lost another one."""
        code, message = describe_error(error)
        kind: Kind = "cause"
        if isinstance(error, PreemptedError):
            kind = "stopped"
        elif isinstance(error, LostPeerError):
            kind = "lost"
        with self._lock:
            said = self._board["failure"]
            if said is None or said["kind"] != "cause":
                failure = Failure(exit_class=exit_class_of(code, error), message=message[:512], kind=kind)
                self._board["failure"] = asdict(failure)
        self._wake.set()

    def settle(self, error: Exception) -> Exception:
        """What this node shall say of its end: `error` where that is the cause, else which node's doing it was. Waits until node 0 has
        judged and, as node 0, until the others know."""
        self.report(error)
        self._patiently(lambda: self._end() is not None, SILENCE_SECONDS + GOODBYE_SECONDS)
        self._goodbye()
        end = self._end()
        if end is None and isinstance(error, LostPeerError) and self._stop.is_set():
            return PreemptedError(
                "stopped by request; what was finished is kept and the next attempt goes on from there"
            )
        if end is None or end.why == "done" or (end.why == "failed" and end.node == self.rank):
            return error
        if end.why == "stopped" and isinstance(error, TryAgainError):
            return error
        if self._first.get("end") is None and isinstance(error, UserError | BadDataError):
            return error  # There is no node 0 to judge, and no doubt.
        return self._sentence(end)

    def finish(self) -> None:
        """All has gone well: node 0 says so and stays until the others know; the others wait for that."""
        if self.is_first:
            self._conclude(End(why="done"))
            self._refuse()  # It may have ended otherwise just now.
            self._goodbye()
        else:
            self._wait(lambda: (self._first.get("end") or {}).get("why") == "done")

    def close(self) -> None:
        """Ends the thread, unless it hangs in the store."""
        self._closed.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    # ---- waiting

    def _wait(self, ready: Callable[[], bool]) -> None:
        while not ready():
            self._refuse()
            # A node that has met node 0 leaves it to that: what node 0 has begun it may finish.
            if self._stop.is_set() and (self.is_first or not self._heard):
                raise PreemptedError("stopped by request before the work of the next phase began")
            time.sleep(TICK_SECONDS / 2)

    def _refuse(self) -> None:
        """Raises when the stage has ended elsewhere."""
        end = self._end()
        if end is not None and end.why != "done":
            raise self._sentence(end)

    def _sentence(self, end: End) -> ComdError:
        which = f"node {end.node} of {self.num} (counted from 0)"
        if end.why == "stopped":
            return PreemptedError(
                f"stopped by request to {which}; what was finished is kept and the next attempt goes on from there"
            )
        if end.why == "vanished":
            sentence = (
                f"{which} {end.message or 'does not answer any more'}; the next attempt goes on from what was finished"
            )
            return ElsewhereError(sentence, exit_class="TryAgain")
        return ElsewhereError(f"{which} ended the stage: {end.message}", exit_class=end.exit_class)

    def _end(self) -> End | None:
        """Node 0's verdict; or that there is no node 0 any more."""
        said = self._first.get("end")
        if said is not None:
            return End(**said)
        if self._broken is not None:
            return End(why="vanished", message=self._broken)
        heard = self._heard.get(0)
        if heard is not None and time.monotonic() - heard > SILENCE_SECONDS:
            return End(why="vanished")
        return None

    def _goodbye(self) -> None:
        """Node 0 takes the store with it, so it goes last."""
        if self.is_first:
            self._patiently(self._all_know, GOODBYE_SECONDS)

    def _all_know(self) -> bool:
        oldest = time.monotonic() - SUSPICION_SECONDS
        return all(
            self._boards.get(rank, {}).get("knows") or self._heard.get(rank, math.inf) < oldest
            for rank in range(1, self.num)
        )

    def _patiently(self, ready: Callable[[], bool], seconds: float) -> None:
        """For so long at most; a node that was asked to stop has less time."""
        deadline = time.monotonic() + (STOPPED_SECONDS if self._stop.is_set() else seconds)
        while not ready() and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS / 2)

    # ---- the thread that talks

    def _talk(self) -> None:
        try:
            store = self._connect()
            while store is not None and not self._closed.is_set():
                if self.is_first:
                    self._talk_as_first(store)
                elif self._talk_to_first(store):
                    return
                self._wake.wait(TICK_SECONDS)
                self._wake.clear()
        except Exception as error:
            # Torch's errors are of the store's connection: whoever keeps the other end of it has gone.
            log.warning("the nodes' store: %s", str(error).partition("\n")[0][:300])
            self._broken = "does not answer any more" if not self.is_first else f"could not keep the store ({error})"

    def _connect(self) -> Any:
        """The store; None when it is not wanted any more. A new pod's name is not known at once, and torch's own client says so in a
        hundred lines: so it is called when somebody answers."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        if self.is_first:
            return TCPStore("127.0.0.1", self.port, is_master=True, wait_for_workers=False, timeout=REQUEST_SECONDS)
        while not self._closed.wait(TICK_SECONDS):
            try:
                socket.create_connection((self.host, self.port), timeout=5.0).close()
            except OSError:
                continue
            return TCPStore(self.host, self.port, is_master=False, wait_for_workers=False, timeout=REQUEST_SECONDS)
        return None

    def _talk_to_first(self, store: Any) -> bool:
        """True when the end is known, here and there: from then on the store may go."""
        store.set(_key(self.rank), self._written(knows=False))
        first = json.loads(store.get(_key(0)))
        if first["beat"] != self._first.get("beat"):
            self._heard[0] = time.monotonic()
        if first["stoppedBy"] is not None:
            self._stop.set()
        if first["end"] is not None:
            store.set(_key(self.rank), self._written(knows=True))
        self._first = first
        return first["end"] is not None

    def _talk_as_first(self, store: Any) -> None:
        store.set(_key(0), self._written(knows=True))
        for rank in set(range(1, self.num)) - set(self._boards):
            if store.check([_key(rank)]):
                log.info("node %d of %d is there", rank, self.num)
                self._boards[rank] = {}
        there = sorted(self._boards)
        now = time.monotonic()
        for rank, text in zip(there, store.multi_get([_key(rank) for rank in there]) if there else [], strict=True):
            board = json.loads(text)
            if board["beat"] != self._boards[rank].get("beat"):
                self._heard[rank] = now
            self._boards[rank] = board
        self._think(now)
        store.set(_key(0), self._written(knows=True))

    def _think(self, now: float) -> None:
        """What follows from what all say."""
        boards = {0: {**self._board, "stop": self._stop.is_set()}, **self._boards}
        for rank, board in boards.items():
            said = board["failure"]
            if said is not None and (rank not in self._reports or asdict(self._reports[rank].failure) != said):
                self._reports[rank] = Report(Failure(**said), now)
        asked = next((rank for rank, board in boards.items() if board["stop"]), None)
        with self._lock:
            self._board["all"] = len(boards) == self.num
            if self._board["stoppedBy"] is None and asked is not None:
                self._board["stoppedBy"] = asked
                self._stop.set()
        end = judge(self._reports, heard=self._heard, stopped_by=self._board["stoppedBy"], now=now)
        if end is not None:
            self._conclude(end)

    def _conclude(self, end: End) -> None:
        with self._lock:
            if self._board["end"] is None:
                self._board["end"] = asdict(end)
        self._wake.set()

    def _written(self, *, knows: bool) -> str:
        with self._lock:
            self._board |= {"beat": self._board["beat"] + 1, "stop": self._stop.is_set(), "knows": knows}
            return json.dumps(self._board)


def judge(
    reports: Mapping[int, Report], *, heard: Mapping[int, float], stopped_by: int | None, now: float
) -> End | None:
    """Whose doing the end is; None while there is none, or while it is too early to tell.

    `heard`: when each node but 0 was last heard. A cause counts before what it made others stumble over, the user's error and bad data
    before others, then the earliest. An unforeseen failure may itself come from a node that has just been lost, so it counts only once
    every other node has been heard after it.
    """
    silence = SUSPICION_SECONDS if reports else SILENCE_SECONDS
    lost = sorted(rank for rank, last in heard.items() if now - last > silence)
    settled = any(now - report.arrived >= SETTLE_SECONDS for report in reports.values())
    causes = sorted(
        (FORESEEN.index(failure.exit_class) if failure.exit_class in FORESEEN else len(FORESEEN), arrived, rank)
        for rank, (failure, arrived) in reports.items()
        if failure.kind == "cause"
    )
    if causes and settled:
        _, arrived, rank = causes[0]
        failure = reports[rank].failure
        if failure.exit_class in FORESEEN or all(last > arrived for last in heard.values()):
            return _failed(rank, failure)
    if lost:
        return End(why="vanished", node=lost[0])
    if stopped_by is not None and settled and not causes:
        return End(why="stopped", node=stopped_by)
    oldest = min(((arrived, rank) for rank, (_, arrived) in reports.items()), default=None)
    if oldest is not None and now - oldest[0] > SILENCE_SECONDS + SETTLE_SECONDS:
        return _failed(oldest[1], reports[oldest[1]].failure)
    return None


def _failed(node: int, failure: Failure) -> End:
    return End(why="failed", node=node, message=failure.message, exit_class=failure.exit_class)


def _key(rank: int) -> str:
    return f"node-{rank}"
