"""What a stage's pod needs of the scratch folder, and what is said where there is less."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comd_api.exit_codes import UserError
from comd_api.run import RunSpec, Storage
from comd_trainer.preflight import fit
from comd_trainer.preflight.findings import Caution
from comd_trainer.preflight.memory import WIDTHS
from comd_trainer.preflight.named import IMAGES_FIELD
from comd_trainer.preflight.scratch import Room, judge, keeps_hub_in, largest_room, room_in
from comd_trainer.store.listing import Entry, Listing
from tests.unit.test_preflight_fit import WEIGHTS, GiB, spec

STUDENT, TEACHER = "spec.student.checkpoint.source", "spec.teacher.checkpoint.source"


def listing(source: str, *sizes: int, folder: Path | None = None) -> Listing:
    return Listing(
        source=source,
        field="x",
        files={str(number): Entry(size=size) for number, size in enumerate(sizes)},
        read_range=lambda *_: b"",
        fingerprint=lambda: "",
        folder=folder,
    )


LISTINGS = {
    STUDENT: listing("m/s", 14 * GiB),
    TEACHER: listing("m/t", 20 * GiB, 6 * GiB),
    IMAGES_FIELD: listing("i", *[GiB] * 3),
}


def room(run: RunSpec, listings: dict[str, Listing] | None = None, *, on_hub: bool = True) -> Room:
    run = run.replace(storage=run.storage or Storage(uri="s3://bucket/x"))
    return largest_room(run, fit.needs(run, WEIGHTS, on_gpu=False), listings or LISTINGS, on_hub=on_hub)


def student_bytes(run: RunSpec) -> int:
    return WIDTHS[run.training.precision] * WEIGHTS[STUDENT].total


def test_a_round_holds_models_images_and_a_checkpoint() -> None:
    run = spec({})
    tune = next(need for need in fit.needs(run, WEIGHTS, on_gpu=False) if need.phase == "tune")
    found = room(run)
    assert found.copies == (14 + 26 + 3) * GiB
    assert found.students == tune.memory.states + WIDTHS["bf16"] * tune.trained, "more than the student itself"
    assert found.words.startswith("round-1 needs at least ")


def test_ranks_of_a_node_share_its_disk_and_nodes_share_the_states() -> None:
    """With ZeRO, each rank writes its part."""
    one = room(spec({}, training={"deepspeed": {"zeroStage": 2}}))
    eight = room(spec({"numProcPerNode": 8}, training={"deepspeed": {"zeroStage": 2}}))
    four_nodes = room(spec({"numProcPerNode": 8, "numNodes": 4}, training={"deepspeed": {"zeroStage": 2}}))
    assert abs(one.students - eight.students) < 1000
    assert four_nodes.students < eight.students / 2


def test_after_pre_training_a_round_begins_with_a_student_of_the_bucket() -> None:
    run = spec({}, pretraining={}, data={**spec({}).data.to_wire(), "pretraining": "p.jsonl"})
    found, local = room(run), room(run.replace(storage=Storage(uri="file:///x")))
    assert found.copies == (26 + 3) * GiB, "the manifest's student is read before it alone"
    assert found.students - local.students == student_bytes(run), "in a folder it is read where it lies"


def test_what_lies_on_this_machine_is_not_copied(tmp_path: Path) -> None:
    local = {field: listing(one.source, GiB, folder=tmp_path) for field, one in LISTINGS.items()}
    assert room(spec({}), local).copies == 0


@pytest.mark.parametrize(("on_hub", "copies"), [(True, 30 * GiB), (False, 29 * GiB)])
def test_the_hub_s_copies_may_lie_elsewhere(on_hub: bool, copies: int) -> None:
    assert room(spec({}), {**LISTINGS, STUDENT: listing("hf://a/b", GiB)}, on_hub=on_hub).copies == copies


def test_with_a_pod_for_each_phase_none_holds_all() -> None:
    whole = room(spec({}))
    single = room(spec({}, execution="Phase"))
    assert single.total < whole.total
    assert single.copies == (14 + 3) * GiB, "tune has no teacher"


ROOM = Room(stage="round-1", copies=10 * GiB, students=5 * GiB)
WORDS = "round-1 needs at least 15.0 GiB (models and images 10.0 GiB, students and checkpoints 5.0 GiB)"


@pytest.mark.parametrize(
    ("limit", "there", "told"),
    [
        (None, None, WORDS),
        ("15Gi", None, f"{WORDS} of 15Gi"),
        (None, 16 * GiB, f"{WORDS} of 16.0 GiB here"),
        ("100Gi", 16 * GiB, f"{WORDS} of 16.0 GiB here"),
    ],
)
def test_room_enough(limit: str | None, there: int | None, told: str) -> None:
    said = judge(ROOM, limit=limit, there=there)
    assert (said, isinstance(said, Caution)) == (told, False)


def test_less_here_is_a_warning_for_stages_may_run_elsewhere() -> None:
    said = judge(ROOM, limit="20Gi", there=3 * GiB)
    assert isinstance(said, Caution)
    assert said == f"{WORDS}, and the scratch folder here has room for 3.0 GiB; free some, or give a larger one"


def test_a_limit_that_every_pod_would_break_is_refused() -> None:
    with pytest.raises(UserError) as raised:
        judge(ROOM, limit="10Gi", there=100 * GiB)
    assert str(raised.value) == f"spec.trainer.scratch.sizeLimit is 10Gi, but {WORDS}; raise it to 18Gi or more"


def test_room_is_what_is_free_and_what_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000, folder=folder))
    assert room_in(tmp_path / "not" / "yet") == 1000
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"x" * 100_000)
    assert 101_000 <= room_in(tmp_path) < 130_000


@pytest.mark.parametrize(
    ("variables", "here"),
    [
        ({"HF_HOME": "/scratch/hub"}, True),
        ({"HF_HOME": "/models"}, False),
        ({"HF_HOME": "", "XDG_CACHE_HOME": "/scratch/.cache"}, True),
        ({"HF_HOME": "", "XDG_CACHE_HOME": "", "HOME": "/scratch"}, True),
        ({"HF_HOME": "", "XDG_CACHE_HOME": "", "HOME": "/root"}, False),
    ],
)
def test_where_the_hub_s_client_keeps_its_copies(
    variables: dict[str, Any], here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert keeps_hub_in(Path("/scratch")) == here
