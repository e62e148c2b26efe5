"""How a stage ends: what went wrong, in the words of the contract, and a message that always fits."""

import errno
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from comd_api.exit_codes import BadDataError, ComdError, ExitCode, TryAgainError, UserError
from comd_api.run import RunSpec, Storage
from comd_api.stage import MAX_TERMINATION_MESSAGE, StageResult
from comd_api.status import ArtifactRef, Counts, ExitClass, GroupScore, PhaseTime, Score
from comd_trainer.cli import main, node_rank_of
from comd_trainer.context import PreemptedError
from comd_trainer.launcher import KilledError, LostPeerError, _error_of, exit_class_of
from comd_trainer.preflight import check_unchanged, take_fingerprints
from comd_trainer.preflight import named_sources as sources_of
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import open_store
from comd_trainer.worker import PhaseJob, describe_error, kind_of, read_errors

PHASES: Any = ("teach", "tune", "answer", "assess", "augment", "evaluate")


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


class DistBackendError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(
    ("error", "code", "says", "kind"),
    [
        (UserError("spec.x is 3"), 64, "spec.x is 3", "UserError"),
        (BadDataError("row 7"), 65, "row 7", "BadData"),
        (TryAgainError("away"), 75, "away", "TryAgain"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1, "no space left on the disk at /x", "Failed"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "no space left", "Failed"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), 1, "no space left", "Failed"),
        (MemoryError(), 1, "out of memory; lower training.microBatchSize", "OutOfMemory"),
        (OutOfMemoryError("CUDA"), 1, "out of GPU memory; lower training.microBatchSize", "OutOfMemory"),
        (KilledError("rank 1 was killed"), 1, "rank 1 was killed", "OutOfMemory"),
        (RuntimeError("boom"), 1, "RuntimeError: boom", "Failed"),
    ],
)
def test_errors(error: Exception, code: int, says: str, kind: ExitClass) -> None:
    found, message = describe_error(error)
    assert found == code
    assert says in message
    told = type(error)(message) if isinstance(error, UserError | BadDataError | TryAgainError) else Exception(message)
    assert exit_class_of(found, error if isinstance(error, KilledError) else told) == kind


def test_the_cause_is_told_and_not_what_it_made_others_stumble_over(tmp_path: Path) -> None:
    (tmp_path / "errors").mkdir()
    accounts = [
        {"code": 1, "message": "connection closed by peer", "kind": "lost", "rank": 0, "time": 1.0},
        {"code": 1, "message": "out of GPU memory", "kind": "cause", "rank": 1, "time": 2.0},
        {"code": 65, "message": "a bad image", "kind": "cause", "rank": 2, "time": 3.0},
        {"code": 75, "message": "stopped by request", "kind": "stopped", "rank": 3, "time": 1.5},
        {"code": 75, "message": "storage is away", "kind": "cause", "rank": 4, "time": 2.5},
    ]
    for account in accounts:
        (tmp_path / "errors" / f"rank-{account['rank']}.json").write_text(json.dumps(account))
    assert [account["rank"] for account in read_errors(tmp_path)] == [2, 4, 1, 3, 0]
    # Whoever was asked to stop did: that is why it ends, unless the data are bad.
    assert [account["rank"] for account in read_errors(tmp_path, stop_asked=True)] == [2, 3, 4, 1, 0]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PreemptedError("stopped by request"), "stopped"),
        (TryAgainError("the endpoint: Connection reset by peer"), "cause"),
        (
            RuntimeError("[/x/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [::1]:5"),
            "lost",
        ),
        (DistBackendError("NCCL communicator was aborted on rank 3."), "lost"),
        (RuntimeError("boom"), "cause"),
    ],
)
def test_a_lost_peer_is_told_from_a_cause(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


def job(folder: Path) -> PhaseJob:
    return PhaseJob(
        config="{}", phase="tune", key="k", artifacts={}, fingerprints={}, folder=str(folder), cache="", partial=""
    )


@dataclass
class Exit:
    exitcode: int


@pytest.mark.parametrize(
    ("exitcode", "accounts", "kind", "says"),
    [
        (-9, [], KilledError, "phase tune: rank 1 was killed (signal 9)"),
        (-9, ["lost"], KilledError, "phase tune: rank 1 was killed (signal 9)"),
        (-11, ["lost"], ComdError, "phase tune: rank 1 was ended by signal 11"),
        (-9, ["lost", "cause"], ComdError, "it said cause"),
        (1, ["lost"], LostPeerError, "it said lost"),
        (75, ["stopped", "lost"], PreemptedError, "it said stopped"),
        (3, [], ComdError, "phase tune: rank 1 ended with exit code 3 and could not say why"),
        (75, [], TryAgainError, "phase tune: rank 1 ended with exit code 75 and could not say why"),
    ],
)
def test_a_rank_that_was_killed_is_told_from_those_that_lost_it(
    tmp_path: Path, exitcode: int, accounts: list[str], kind: type[Exception], says: str
) -> None:
    (tmp_path / "errors").mkdir()
    for rank, said in enumerate(accounts):
        account = {"code": 75 if said == "stopped" else 1, "message": f"it said {said}", "kind": said, "rank": rank}
        (tmp_path / "errors" / f"rank-{rank}.json").write_text(json.dumps({**account, "time": float(rank)}))
    raised = Exception("a child failed")
    raised.failures = {1: Exit(exitcode)}  # type: ignore[attr-defined]
    error = _error_of(job(tmp_path), raised, stop_asked=False)
    assert type(error) is kind
    assert says in str(error)


@pytest.mark.parametrize(
    ("value", "rank"), [({}, 0), ({"JOB_COMPLETION_INDEX": ""}, 0), ({"JOB_COMPLETION_INDEX": "7"}, 7)]
)
def test_which_node_this_is(value: dict[str, str], rank: int) -> None:
    assert node_rank_of(value) == rank
    with pytest.raises(UserError, match="JOB_COMPLETION_INDEX is '-1'"):
        node_rank_of({"JOB_COMPLETION_INDEX": "-1"})


def test_a_result_of_any_size_fits_into_a_termination_message() -> None:
    groups = [GroupScore(name="g" * 64, value=1 / 3, num_items=10**6)] * 16
    score = Score(
        evaluation="e" * 63, role="student", value=1 / 3, low=1 / 7, high=2 / 3, num_items=10**6, groups=groups
    )
    result = StageResult(
        exit_class="Done",
        message="ä" * 1024,
        stop="ä" * 1024,
        artifacts=[ArtifactRef(name=name, uri="s3://" + "u" * 400, digest="sha256:" + "0" * 64) for name in "abcd"],
        phases=[PhaseTime(name=name, seconds=123.45) for name in PHASES],
        counts=Counts(train=1, hard=2, easy=3),
        scores=[score] * 16,
    )
    text = result.to_termination_message()
    assert len(text.encode()) <= MAX_TERMINATION_MESSAGE
    told = StageResult.model_validate(json.loads(text))
    assert (told.exit_class, told.artifacts, told.counts) == ("Done", result.artifacts, result.counts)


def test_a_wrong_command_line_is_the_users_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "--fast"])
    assert caught.value.code == ExitCode.USER_ERROR
    assert "unrecognized arguments: --fast" in capsys.readouterr().err


def test_a_file_that_changes_under_a_run_ends_it(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "seed.jsonl").write_text('{"id": "1", "image": "1.png", "instruction": "what?"}\n')
    spec = RunSpec.model_validate(
        {
            "student": {"checkpoint": {"source": "hf://a/b"}},
            "teacher": {"endpoint": {"url": "http://x/v1", "model": "m"}},
            "data": {"images": "images", "seed": {"instructions": "seed.jsonl"}},
        }
    )
    storage = Storage(uri=tmp_path.as_uri())
    sources = Sources(storage, open_store(storage.uri, storage.s3), tmp_path / "cache")
    here = [one for one in sources_of(spec) if not one.source.startswith("hf://")]
    fingerprints = take_fingerprints(here, sources)
    check_unchanged(spec, fingerprints, sources)
    (tmp_path / "seed.jsonl").write_text('{"id": "1", "image": "1.png", "instruction": "why?"}\n')
    with pytest.raises(
        UserError, match=r"spec.data.seed.instructions \(seed.jsonl\) was changed after the stage preflight"
    ):
        check_unchanged(spec, fingerprints, sources)
