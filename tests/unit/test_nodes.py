"""What the supervisors of several nodes tell each other: who decides, and whose doing an end was."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from comd_api.exit_codes import BadDataError, ComdError, TryAgainError, UserError
from comd_api.status import ExitClass
from comd_trainer import nodes as module
from comd_trainer.context import PreemptedError
from comd_trainer.launcher import ElsewhereError, KilledError, LostPeerError, exit_class_of
from comd_trainer.nodes import End, Failure, Nodes, Report, judge
from comd_trainer.worker import Kind, describe_error

NOW = 1000.0


def said(kind: Kind, exit_class: ExitClass = "Failed", *, ago: float = 2.0, message: str = "it broke") -> Report:
    return Report(Failure(exit_class=exit_class, message=message, kind=kind), NOW - ago)


def failed(node: int, exit_class: ExitClass = "Failed", *, message: str = "it broke") -> End:
    return End(why="failed", node=node, message=message, exit_class=exit_class)


def heard(*ago: float) -> dict[int, float]:
    """When the nodes 1, 2 … were last heard."""
    return {rank: NOW - seconds for rank, seconds in enumerate(ago, start=1)}


CASES: dict[str, tuple[dict[int, Report], dict[int, float], int | None, End | None]] = {
    "nothing has happened": ({}, heard(0.1, 0.1), None, None),
    "a node is silent, but not for long": ({}, heard(6.0, 0.1), None, None),
    "a node is silent for long": ({}, heard(0.1, 16.0), None, End(why="vanished", node=2)),
    "silence with a reason to be suspicious": ({0: said("lost")}, heard(6.0, 0.1), None, End(why="vanished", node=1)),
    "a lost peer alone says nothing yet": ({0: said("lost")}, heard(0.1, 0.1), None, None),
    "all are there and nobody knows why": (
        {0: said("lost", ago=17.0), 2: said("lost", ago=18.0)},
        heard(0.1, 0.1),
        None,
        failed(2),
    ),
    "the cause counts, not who stumbled over it": (
        {0: said("lost", ago=3.0), 1: said("cause")},
        heard(0.1, 0.1),
        None,
        failed(1),
    ),
    "the user's error before any other": (
        {0: said("cause", ago=3.0), 2: said("cause", "UserError", ago=2.0, message="no such field")},
        heard(0.1, 0.1),
        None,
        failed(2, "UserError", message="no such field"),
    ),
    "the first of equal ones": (
        {0: said("cause", "BadData"), 1: said("cause", "BadData", ago=2.5, message="row 7")},
        heard(0.1, 0.1),
        None,
        failed(1, "BadData", message="row 7"),
    ),
    "memory that ran out is unforeseen too": (
        {1: said("cause", "OutOfMemory"), 2: said("cause", "TryAgain", ago=1.5, message="the store is away")},
        heard(0.1, 0.1),
        None,
        failed(2, "TryAgain", message="the store is away"),
    ),
    "memory that ran out on a node": (
        {1: said("cause", "OutOfMemory")},
        heard(0.1, 0.1),
        None,
        failed(1, "OutOfMemory"),
    ),
    "out of memory, and a node has not been heard since": (
        {0: said("cause", "OutOfMemory")},
        heard(3.0, 0.1),
        None,
        None,
    ),
    "too early to tell": ({1: said("cause", "UserError", ago=0.5)}, heard(0.1, 0.1), None, None),
    "unforeseen, and a node has not been heard since": ({0: said("cause")}, heard(3.0, 0.1), None, None),
    "unforeseen, because a node was lost": (
        {0: said("cause", ago=6.0)},
        heard(7.0, 0.1),
        None,
        End(why="vanished", node=1),
    ),
    "the user's error needs no such doubt": (
        {0: said("cause", "UserError")},
        heard(3.0, 0.1),
        None,
        failed(0, "UserError"),
    ),
    "stopped, and some ranks lost those that had stopped": (
        {0: said("lost"), 1: said("stopped", "TryAgain")},
        heard(0.1, 0.1),
        1,
        End(why="stopped", node=1),
    ),
    "asked to stop and still saving": ({}, heard(0.1, 0.1), 1, None),
    "bad data while stopping": (
        {0: said("cause", "BadData", message="row 7"), 1: said("stopped", "TryAgain")},
        heard(0.1, 0.1),
        1,
        failed(0, "BadData", message="row 7"),
    ),
}


@pytest.mark.parametrize(("reports", "last", "stopped_by", "end"), CASES.values(), ids=CASES.keys())
def test_whose_doing_the_end_was(
    reports: dict[int, Report], last: dict[int, float], stopped_by: int | None, end: End | None
) -> None:
    assert judge(reports, heard=last, stopped_by=stopped_by, now=NOW) == end


@pytest.mark.parametrize(
    ("rank", "rendezvous", "says"),
    [
        (2, "host:1", "--node-rank is 2, but spec.trainer.numNodes is 2; give 0 to 1"),
        (0, "host", "--rendezvous is 'host'; give host:port"),
        (0, "host:port", "--rendezvous is 'host:port'; give host:port"),
        (1, ":29400", "--rendezvous is ':29400'; give host:port"),
    ],
)
def test_a_place_that_can_not_be(rank: int, rendezvous: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Nodes(rank=rank, num=2, rendezvous=rendezvous, stop=threading.Event())


@pytest.mark.parametrize(
    ("rank", "rendezvous", "meeting"),
    [
        (0, "first.run-x:29400", "127.0.0.1:29403"),
        (1, "first.run-x:29400", "first.run-x:29403"),
        (1, "[::1]:5", "::1:8"),
    ],
)
def test_where_the_ranks_of_a_phase_meet(rank: int, rendezvous: str, meeting: str) -> None:
    assert Nodes(rank=rank, num=2, rendezvous=rendezvous, stop=threading.Event()).meeting(2) == meeting


# ---- over a real store


@pytest.fixture
def trio() -> Iterator[list[Nodes]]:
    """Three nodes that have not begun."""
    with socket.socket() as free:
        free.bind(("", 0))
        address = f"localhost:{free.getsockname()[1]}"
    made = [Nodes(rank=rank, num=3, rendezvous=address, stop=threading.Event(), patience=20) for rank in range(3)]
    yield made
    for node in made:
        node.close()


def at_once(nodes: list[Nodes], act: Callable[[Nodes], object]) -> list[object]:
    """What each node comes to, or raises."""

    def run(node: Nodes) -> object:
        try:
            return act(node)
        except ComdError as error:
            return error

    with ThreadPoolExecutor(max_workers=len(nodes)) as pool:
        return list(pool.map(run, nodes))


def begin(node: Nodes) -> None:
    node.start()
    node.wait_for_all()


def test_the_first_decides_and_all_end_well(trio: list[Nodes]) -> None:
    def play(node: Nodes) -> object:
        begin(node)
        if node.is_first:
            node.say("tune", {"found": True})
            node.finish()
            return None
        word = node.hear("tune")
        node.finish()
        return word

    assert at_once(trio, play) == [None, {"found": True}, {"found": True}]


def test_a_node_that_does_not_come(trio: list[Nodes]) -> None:
    for node in trio:
        node._patience = 1.0
    present, alone = at_once(trio[:2], begin), at_once(trio[2:3], lambda node: node.wait_for_all())
    assert [str(error) for error in present] == ["not all of the 3 nodes came within 1 s"] * 2
    assert str(alone[0]) == f"node 0 did not answer at localhost:{trio[0].port} within 1 s"
    assert all(isinstance(error, TryAgainError) for error in [*present, *alone])


@pytest.mark.parametrize(
    ("cause", "exit_class", "code"),
    [
        (UserError("no key"), "UserError", 64),
        (BadDataError("row 7 is no image"), "BadData", 65),
        (TryAgainError("the store is away"), "TryAgain", 75),
        (ComdError("loss is nan"), "Failed", 1),
        (KilledError("rank 5 was killed"), "OutOfMemory", 1),
        (ComdError("out of GPU memory; use more GPUs"), "OutOfMemory", 1),
    ],
    ids=["user", "data", "again", "crash", "killed", "GPU memory"],
)
def test_the_cause_keeps_its_error_and_the_others_name_it_and_end_alike(
    trio: list[Nodes], cause: ComdError, exit_class: ExitClass, code: int
) -> None:
    own = [LostPeerError("rank 0 lost a peer"), LostPeerError("rank 1 lost a peer"), cause]

    def play(node: Nodes) -> object:
        begin(node)
        time.sleep(0.3 if node.rank == 2 else 0.0)  # the cause is the last to say so
        assert not node.over()
        return node.settle(own[node.rank])

    first, second, third = at_once(trio, play)
    assert third is cause
    for error in (first, second):
        assert isinstance(error, ElsewhereError)
        assert str(error) == f"node 2 of 3 (counted from 0) ended the stage: {cause}"
        found, _ = describe_error(error)
        assert (found, exit_class_of(found, error)) == (code, exit_class)
    assert all(node.over() for node in trio)


def test_a_failed_node_is_the_end_of_waiting(trio: list[Nodes]) -> None:
    """Node 1 waits for node 0's word, node 0 is about to give it, and node 2 can't go on."""

    def play(node: Nodes) -> object:
        begin(node)
        if node.rank == 2:
            return node.settle(UserError("no key"))
        if node.is_first:
            time.sleep(0.5)
        try:
            if node.is_first:
                node.say("tune", 1)
            return node.hear("published")
        except ComdError as error:
            return node.settle(error)

    first, second, third = at_once(trio, play)
    assert str(first) == str(second) == "node 2 of 3 (counted from 0) ended the stage: no key"
    assert isinstance(third, UserError)


def test_a_stop_reaches_all_nodes(trio: list[Nodes]) -> None:
    saved = PreemptedError("stopped by request after step 3")

    def play(node: Nodes) -> object:
        begin(node)
        if node.rank == 1:
            node._stop.set()
        assert node._stop.wait(timeout=10)
        return node.settle(saved if node.rank < 2 else LostPeerError("rank 5 lost a peer"))

    first, second, third = at_once(trio, play)
    assert first is second is saved
    assert isinstance(third, PreemptedError)
    assert str(third).startswith("stopped by request to node 1 of 3 (counted from 0)")
    assert not any(node.over() for node in trio), "there is time to save"


def test_a_stop_before_node_0_is_there(trio: list[Nodes]) -> None:
    trio[1].start()
    trio[1]._stop.set()
    with pytest.raises(PreemptedError, match="stopped by request before"):
        trio[1].wait_for_all()


def test_a_silent_node(trio: list[Nodes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 1.5)
    monkeypatch.setattr(module, "SUSPICION_SECONDS", 1.0)

    def play(node: Nodes) -> object:
        begin(node)
        if node.rank == 2:
            node.close()
            return None
        if node.is_first:
            while not node.over():
                time.sleep(0.05)
            return node.settle(LostPeerError("rank 0 lost a peer"))
        return node.hear("tune")

    first, second, _ = at_once(trio, play)
    assert isinstance(first, ElsewhereError)
    assert isinstance(second, ElsewhereError)
    assert first.exit_class == second.exit_class == "TryAgain", "a machine that has gone costs no retry"
    assert str(first) == str(second)
    assert str(first).startswith("node 2 of 3 (counted from 0) does not answer any more")
