"""A run that was stopped or killed comes to exactly what the uninterrupted one comes to."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.training.ranks import Case, Precision, plain, result, run_ranks, weights

STEPS = 5


def finished(folder: Path, case: Case) -> tuple[list[float], bytes]:
    return result(folder, case)["losses"], weights(folder, case)


def test_stopping_at_any_step_and_going_on_changes_nothing(folder: Path) -> None:
    # Only one rank is told, and not always the first: ranks must agree before they act.
    kinds: list[tuple[int, Precision, Sequence[int]]] = [
        (0, "fp32", (2,)),
        (1, "fp32", (3,)),
        (2, "fp32", range(STEPS)),
        (3, "fp32", (2,)),
        (0, "bf16", (2,)),
        (2, "bf16", (2,)),
        (3, "bf16", (3,)),
    ]
    stopped = [
        Case(
            name=f"stage{stage}-{precision}-stop{stop}",
            stage=stage,
            precision=precision,
            steps=STEPS,
            stop_at=stop,
            stop_rank=stop % 2,
        )
        for stage, precision, stops in kinds
        for stop in stops
    ]
    whole = {(case.stage, case.precision): plain(case, f"whole-{case.stage}-{case.precision}") for case in stopped}
    assert run_ranks([*whole.values(), *stopped], folder=folder, world_size=2) == [0, 0]
    for case in stopped:
        assert f"after step {case.stop_at} of {STEPS}" in result(folder, case)["preempted"]
    again = [plain(case, case.name) for case in stopped]
    assert run_ranks(again, folder=folder, world_size=2) == [0, 0]
    for case in again:
        losses, expected = finished(folder, whole[case.stage, case.precision])
        assert result(folder, case)["losses"] == losses, case.name
        assert weights(folder, case) == expected, case.name
        assert len(losses) == STEPS


@pytest.mark.parametrize("stage", [2, 3])
def test_kill_in_the_middle_of_training(folder: Path, stage: int) -> None:
    killed = Case(name="killed", stage=stage, steps=STEPS, checkpoint_steps=2, kill_at_step=3, kill_rank=1)
    whole = plain(killed, "whole")
    assert run_ranks([whole], folder=folder, world_size=2) == [0, 0]
    codes = run_ranks([killed], folder=folder, world_size=2)
    assert codes[1] == -9
    assert codes[0] != 0
    assert list((folder / "killed/store").rglob("manifest.json")), (
        "it was killed before its first checkpoint: the test tests nothing"
    )
    assert run_ranks([plain(killed, "killed")], folder=folder, world_size=2) == [0, 0]
    assert finished(folder, plain(killed, "killed")) == finished(folder, whole)


def test_kill_in_the_middle_of_a_checkpoint(folder: Path) -> None:
    whole = Case(name="whole", steps=STEPS, checkpoint_steps=2)
    assert run_ranks([whole], folder=folder, world_size=2) == [0, 0]
    # Rank 0 writes its files, then the manifest; the second checkpoint also deletes the first.
    for rank, write in ((0, 1), (0, 4), (1, 1), (0, 7), (1, 5)):
        killed = Case(name=f"kill-{rank}-{write}", steps=STEPS, checkpoint_steps=2, kill_rank=rank, kill_at_write=write)
        codes = run_ranks([killed], folder=folder, world_size=2)
        assert codes[rank] == -9, f"{killed.name}: there is no write number {write}"
        again = plain(killed, killed.name)
        assert run_ranks([again], folder=folder, world_size=2) == [0, 0]
        assert finished(folder, again) == finished(folder, whole), killed.name


def test_older_checkpoints_are_deleted(folder: Path) -> None:
    case = Case(name="run", steps=STEPS, checkpoint_steps=1)
    assert run_ranks([case], folder=folder, world_size=2) == [0, 0]
    kept = result(folder, case)["checkpoints"]
    assert [name.split("-")[1] for name in kept] in (["00000003", "00000004"], ["00000004"])


def test_another_number_of_ranks_begins_again(folder: Path) -> None:
    """As with another ZeRO stage: nobody has to delete anything to go on with the GPUs that there are."""
    stopped = Case(name="run", steps=STEPS, stop_at=2)
    assert run_ranks([stopped], folder=folder, world_size=2) == [0, 0]
    other, whole = Case(name="run", steps=STEPS), Case(name="whole", steps=STEPS)
    assert run_ranks([other, whole], folder=folder, world_size=1) == [0]
    assert finished(folder, other) == finished(folder, whole)


def test_another_zero_stage_begins_again(folder: Path) -> None:
    """Who ran out of memory may raise it: the phase's key stays, and no stage reads another's checkpoints."""
    stopped = Case(name="run", stage=2, steps=STEPS, stop_at=2)
    assert run_ranks([stopped], folder=folder, world_size=2) == [0, 0]
    other, whole = Case(name="run", stage=3, steps=STEPS), Case(name="whole", stage=3, steps=STEPS)
    assert run_ranks([other, whole], folder=folder, world_size=2) == [0, 0]
    assert finished(folder, other) == finished(folder, whole)


def test_a_loss_that_is_no_number_names_its_rows_and_steps_no_weight(folder: Path) -> None:
    assert run_ranks([Case(name="nan", poisoned=True, stage=0, steps=1)], folder=folder, world_size=2) == [1, 1]
    errors = [(folder / f"error-{rank}.txt").read_text() for rank in range(2)]
    assert all("BadDataError: the loss of step 1 is nan; rows of that step: row-" in error for error in errors)


def test_too_many_rows_without_room_end_training(folder: Path) -> None:
    assert run_ranks([Case(name="short", max_length=40)], folder=folder, world_size=2) == [1, 1]
    error = (folder / "error-0.txt").read_text()
    assert "of 20 training rows can't be used, more than data.maxBadRowFraction (0.05) allows" in error
    assert "and training.maxLength is 40" in error
