"""A stage over several nodes: the same artifacts as on one, and one end for all nodes, whatever happens to one of them."""

import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comd_api.stage import StageResult
from tests.e2e import service
from tests.e2e.runs import contents
from tests.e2e.test_s3_run import made, upload
from tests.e2e.world import make_inputs, manifest
from tests.s3.versity import Server
from tests.training.nodes import Stage, ended

STEPS = 150
LONG: dict[str, Any] = {
    "pretraining": {"batchSize": 4, "maxSteps": STEPS, "learningRate": 0.001},
    "data": {**manifest()["spec"]["data"], "evaluation": []},
}
"""One phase, long enough that something can happen in the middle of it: some seconds."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("world") / "inputs")


def make_stage(folder: Path, inputs: Path, *, num_nodes: int = 2, num_proc: int = 1, **changes: Any) -> Stage:
    """`preflight` is done."""
    shutil.copytree(inputs, folder / "store" / "inputs")
    stage = Stage(folder=folder, num_nodes=num_nodes, num_proc=num_proc, changes=changes)
    assert stage.run("preflight") == [0], stage.log(0)
    return stage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Stage:
    """The long pre-training and a round by two ranks of one node, undisturbed."""
    stage = make_stage(tmp_path_factory.mktemp("whole"), inputs, num_nodes=1, num_proc=2, **LONG)
    assert stage.run("pretrain") == [0], stage.log(0)
    assert stage.run("round-1") == [0], stage.log(0)
    return stage


@pytest.fixture
def pair(tmp_path: Path, inputs: Path) -> Stage:
    """The same before it, on two nodes."""
    return make_stage(tmp_path, inputs, **LONG)


def in_the_middle(stage: Stage) -> None:
    stage.wait_until(lambda: stage.steps_done("pretrain", "pretrain") > 20)


def goes_on_as(stage: Stage, whole: Stage) -> None:
    """The next attempt continues from a checkpoint, and comes to the same end."""
    assert stage.checkpoints(), "nothing to go on from: the test tests nothing"
    assert stage.run("pretrain") == [0, 0], stage.log(0)
    assert all(re.search(r"continues from the checkpoint of step \d+", stage.log(rank)) for rank in range(2))
    assert stage.losses("pretrain", "pretrain") == whole.losses("pretrain", "pretrain")
    assert stage.contents() == {
        path: digest for path, digest in whole.contents().items() if not path.startswith("round-1/")
    }


def test_a_run_over_two_nodes_is_that_of_one(tmp_path: Path, inputs: Path) -> None:
    """Four ranks either way: every file of every artifact is the same, and so is what the artifacts say of themselves. With ZeRO 3 each
    layer's weights travel between the nodes."""
    made = {}
    training = {**manifest()["spec"]["training"], "microBatchSize": 1, "deepspeed": {"zeroStage": 3}}
    for num_nodes, num_proc in ((2, 2), (1, 4)):
        folder = tmp_path / str(num_nodes)
        stage = make_stage(folder, inputs, num_nodes=num_nodes, num_proc=num_proc, training=training)
        with ended(stage):
            assert stage.run("pretrain") == [0] * num_nodes, stage.log(0)
            assert stage.run("round-1") == [0] * num_nodes, stage.log(0)
        made[num_nodes] = stage
    two, one = made[2], made[1]
    assert two.contents() == one.contents()
    assert [ref.digest for ref in two.inputs] == [ref.digest for ref in one.inputs]
    assert two.losses("round-1", "tune") == one.losses("round-1", "tune")
    first = two.result(0)
    assert (first.counts, first.scores) == (one.result(0).counts, one.result(0).scores)
    assert two.result(1) == StageResult(exit_class="Done"), "node 0 alone tells what was made"
    # What is there already is found by all.
    assert two.run("pretrain") == [0, 0]
    assert [phase.reused for phase in two.result(0).phases] == [True, True]


@pytest.mark.parametrize("asked", [(1,), (0, 1)], ids=["one", "all"])
def test_sigterm_stops_all_nodes_at_the_same_step(pair: Stage, whole: Stage, asked: tuple[int, ...]) -> None:
    """To one, as when its machine is drained; to all, as when the Job is deleted."""
    with ended(pair):
        pair.start("pretrain")
        in_the_middle(pair)
        for rank in asked:
            pair.signal(rank, signal.SIGTERM)
        assert pair.wait(timeout=60) == [75, 75]
        messages = [pair.result(rank).message for rank in range(2)]
        assert messages[0] == messages[1]
        step = re.fullmatch(
            rf"stopped by request after step (\d+) of {STEPS}; the next attempt goes on from there", messages[0]
        )
        assert step, messages
        assert pair.checkpoints()[-1].startswith(f"step-{int(step[1]):08d}-")
        goes_on_as(pair, whole)
        assert f"continues from the checkpoint of step {step[1]}" in pair.log(1)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_node_that_is_gone_is_noticed_by_the_other(pair: Stage, whole: Stage, lost: int) -> None:
    other = 1 - lost
    with ended(pair):
        pair.start("pretrain")
        in_the_middle(pair)
        pair.signal(lost, signal.SIGKILL)
        began = time.monotonic()
        codes = pair.wait(timeout=60)
        assert time.monotonic() - began < 30
        assert (codes[lost], codes[other]) == (-signal.SIGKILL, 75), pair.log(other)
        result = pair.result(other)
        assert result.exit_class == "TryAgain"
        assert result.message.startswith(f"node {lost} of 2 (counted from 0) does not answer any more")
        goes_on_as(pair, whole)


def test_the_command_itself(pair: Stage, whole: Stage) -> None:
    """Not forked from a server that has imported all: the one that is left ends with its own code, and node 0 may come late."""
    pair.forked = False
    with ended(pair):
        pair.start("pretrain", pause=2.0)
        in_the_middle(pair)
        pair.signal(1, signal.SIGKILL)
        assert pair.wait(timeout=60) == [75, -signal.SIGKILL], pair.log(0)
        pair.forked = True
        goes_on_as(pair, whole)


def test_a_node_that_stands_still_is_noticed(pair: Stage) -> None:
    """As one whose network is gone: its ranks' connections stay open, and the other's would wait for an hour."""
    with ended(pair):
        pair.start("pretrain")
        in_the_middle(pair)
        ranks = list(pair.rank_processes(1))
        assert len(ranks) == 1
        for process in ranks:
            process.suspend()
        pair.signal(1, signal.SIGSTOP)
        began = time.monotonic()
        pair.processes[0].join(timeout=60)
        assert pair.processes[0].exitcode == 75, pair.log(0)
        assert time.monotonic() - began < 45
        assert pair.result(0).message.startswith("node 1 of 2 (counted from 0) does not answer any more")


@pytest.mark.parametrize(
    ("number", "exit_class", "what"),
    [
        (signal.SIGKILL, "OutOfMemory", "was killed (signal 9); the usual cause is that memory ran out"),
        (signal.SIGSEGV, "Failed", "was ended by signal 11"),
    ],
)
def test_a_rank_that_is_killed_ends_all_nodes_alike(
    pair: Stage, whole: Stage, number: signal.Signals, exit_class: str, what: str
) -> None:
    """Whichever pod the operator hears of first, it costs a retry."""
    with ended(pair):
        pair.start("pretrain")
        in_the_middle(pair)
        for process in list(pair.rank_processes(1)):
            process.send_signal(number)
        began = time.monotonic()
        assert pair.wait(timeout=60) == [1, 1]
        assert time.monotonic() - began < 15
        sentence = f"phase pretrain: rank 1 {what}"
        assert [pair.result(rank).exit_class for rank in range(2)] == [exit_class] * 2
        assert pair.result(1).message == sentence
        assert pair.result(0).message == f"node 1 of 2 (counted from 0) ended the stage: {sentence}"
        goes_on_as(pair, whole)


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_folder_that_one_node_can_not_write_to(pair: Stage, wrong: int) -> None:
    (pair.folder / f"node-{wrong}").mkdir(exist_ok=True)
    shutil.rmtree(pair.folder / f"node-{wrong}" / "scratch", ignore_errors=True)
    (pair.folder / f"node-{wrong}" / "scratch").write_text("no folder")
    with ended(pair):
        pair.start("pretrain")
        codes = pair.wait(timeout=60)
    assert codes == [64, 64]
    message = pair.result(wrong).message
    assert message.startswith(
        f"the trainer's scratch folder: {pair.folder}/node-{wrong}/scratch/pretrain can't be used"
    )
    assert [pair.result(rank).exit_class for rank in range(2)] == ["UserError"] * 2
    assert pair.result(1 - wrong).message == f"node {wrong} of 2 (counted from 0) ended the stage: {message}"


# ---- a phase that generates: ranks meet at its ends only


class Teacher:
    """A slow one, behind an endpoint that wants a key."""

    KEY = "COMD_SECRET_TEACHER_KEY"

    def __init__(self, url: str) -> None:
        ref = {"name": "teacher", "key": "key"}
        endpoint = {"url": url, "model": "teacher", "concurrency": 2, "apiKeySecretRef": ref}
        self.changes: dict[str, Any] = {
            "teacher": {"endpoint": endpoint},
            "student": {"checkpoint": {"source": "inputs/models/teacher"}},
            "assessor": {"type": "Reference"},
            "data": {name: value for name, value in LONG["data"].items() if name != "pretraining"},
            "pretraining": None,
        }
        self.asked: list[float] = []
        self.seconds = 0.25

    def answer(self, _: str) -> str:
        self.asked.append(time.monotonic())
        time.sleep(self.seconds)
        return "blue"


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Teacher]:
    with service.serving() as url:
        made = Teacher(url)
        monkeypatch.setitem(service.MODELS, "teacher", made.answer)
        monkeypatch.setenv(Teacher.KEY, "secret")
        yield made


NUM_QUESTIONS = 22
"""The seed's 24, of which two are asked twice."""


def test_sigterm_while_answers_are_made(tmp_path: Path, inputs: Path, teacher: Teacher) -> None:
    """Both nodes keep what they have, and no question is asked again but for those that were under way."""
    stage = make_stage(tmp_path, inputs, **teacher.changes)
    stage.phases = ["teach"]
    with ended(stage):
        stage.start("round-1")
        stage.wait_until(lambda: len(teacher.asked) >= 6)
        stage.signal(1, signal.SIGTERM)
        assert stage.wait(timeout=60) == [75, 75], stage.log(0)
        assert all(stage.result(rank).message.startswith("stopped by request") for rank in range(2))
        asked = len(teacher.asked)
        assert asked < NUM_QUESTIONS
        assert stage.run("round-1") == [0, 0], stage.log(0)
    assert len(teacher.asked) <= NUM_QUESTIONS + 2
    assert len(teacher.asked) > asked
    counts = stage.result(0).counts
    assert counts is not None
    assert counts.teacher_answers == NUM_QUESTIONS


def test_a_key_that_one_node_lacks(tmp_path: Path, inputs: Path, teacher: Teacher) -> None:
    """The user's error in the middle of a phase. The other node's rank waits for a slow teacher, and is ended all the same."""
    stage = make_stage(tmp_path, inputs, **teacher.changes)
    stage.environments = {1: {Teacher.KEY: ""}}
    teacher.seconds = 60.0
    with ended(stage):
        stage.start("round-1")
        began = time.monotonic()
        assert stage.wait(timeout=60) == [64, 64], stage.log(0)
        assert time.monotonic() - began < 30
    sentence = (
        "spec.teacher.endpoint.apiKeySecretRef: no key for teacher/key; set the environment variable "
        "COMD_SECRET_TEACHER_KEY"
    )
    assert [stage.result(rank).exit_class for rank in range(2)] == ["UserError"] * 2
    assert stage.result(1).message == sentence
    assert stage.result(1).failed_phase == "teach"
    assert stage.result(0).message == f"node 1 of 2 (counted from 0) ended the stage: {sentence}"


# ---- nothing in common but a bucket


@pytest.mark.timeout(600)
def test_nodes_that_share_nothing_but_a_bucket(
    tmp_path: Path, inputs: Path, s3_keys: Server, bucket: str, whole: Stage
) -> None:
    """Sources, checkpoints and artifacts come to each node from a real S3 server; stopped and continued on the way."""
    upload(s3_keys, bucket, inputs, "distillation/inputs")
    storage = {"uri": f"s3://{bucket}/distillation", "s3": {"endpoint": s3_keys.endpoint, "region": "us-east-1"}}
    stage = Stage(folder=tmp_path, num_nodes=2, num_proc=1, changes=LONG, storage=storage)
    assert stage.run("preflight") == [0], stage.log(0)
    with ended(stage):
        stage.start("pretrain")
        in_the_middle(stage)
        stage.signal(1, signal.SIGTERM)
        assert stage.wait(timeout=60) == [75, 75], stage.log(0)
        for rank in range(2):
            shutil.rmtree(tmp_path / f"node-{rank}" / "scratch")  # The next attempt runs on other nodes.
        assert stage.run("pretrain") == [0, 0], stage.log(0)
        assert all("continues from the checkpoint of step" in stage.log(rank) for rank in range(2))
        assert stage.run("round-1") == [0, 0], stage.log(0)
    assert all((tmp_path / f"node-{rank}" / "scratch" / "cache" / "sources").is_dir() for rank in range(2))
    assert made(contents(s3_keys.folder / bucket, store="distillation")) == made(whole.contents())
