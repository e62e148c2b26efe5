"""Whether the scratch folder has room for what a pod puts there. A lower bound, as in `memory`: what is left out (answers, caches of
libraries) may still fill a disk that passes.

Copies of what lies in a bucket or on the hub, for as long as the pod lives:   models that its phases load, images
The student that it begins with, when that lies in a bucket, and the one that it makes:   w P each
A checkpoint under way, before the student is written:   this node's share of the states, and the weights that learn, w T
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comd_api.exit_codes import UserError
from comd_api.pods import amount
from comd_api.run import RunSpec
from comd_api.stages import phases_of
from comd_api.status import PhaseName
from comd_trainer.preflight.findings import Caution
from comd_trainer.preflight.fit import TRAINING_PHASES, Need, gib
from comd_trainer.preflight.memory import WIDTHS
from comd_trainer.preflight.named import IMAGES_FIELD, LANGUAGE_FIELD, VISION_FIELD, checkpoint_field
from comd_trainer.store.listing import Listing

FIELD = "spec.trainer.scratch.sizeLimit"


@dataclass(frozen=True, kw_only=True)
class Room:
    """Bytes that the pod of a stage needs."""

    stage: str
    copies: int
    """Of models and images."""
    students: int
    """Students, and a checkpoint under way."""

    @property
    def total(self) -> int:
        return self.copies + self.students

    @property
    def words(self) -> str:
        parts = f"models and images {gib(self.copies)}, students and checkpoints {gib(self.students)}"
        return f"{self.stage} needs at least {gib(self.total)} ({parts})"


def largest_room(spec: RunSpec, needs: Sequence[Need], listings: Mapping[str, Listing], *, on_hub: bool) -> Room:
    """Of the stages' pods the one that needs most. `listings`: by field, of models and images; `on_hub`: whether copies of what lies
    on the hub are kept in the scratch folder too."""
    rooms = [
        _room(spec, stage, phases, needs, listings, on_hub=on_hub)
        for stage in ("pretrain", "round-1")
        for phases in _jobs(spec, stage)
    ]
    return max(rooms, key=lambda room: room.total)


def _jobs(spec: RunSpec, stage: str) -> list[list[PhaseName]]:
    phases = phases_of(spec, stage)
    return [[phase] for phase in phases] if spec.execution == "Phase" else [phases]


def _room(
    spec: RunSpec,
    stage: str,
    phases: Sequence[PhaseName],
    needs: Sequence[Need],
    listings: Mapping[str, Listing],
    *,
    on_hub: bool,
) -> Room:
    here = [need for need in needs if need.phase in phases]
    fields = {checkpoint_field(need.field) for need in here if need.role != "student"} | {IMAGES_FIELD}
    begins = spec.start_from is None and (spec.pretraining is None or stage == "pretrain")
    if begins and any(need.role == "student" for need in here):
        fields |= {VISION_FIELD, LANGUAGE_FIELD, checkpoint_field("spec.student")}
    copies = {
        listing.source: _bytes(listing, on_hub=on_hub)
        for field, listing in listings.items()
        if field in fields and phases
    }
    width = WIDTHS[spec.training.precision]
    in_bucket = spec.storage is not None and spec.storage.uri.startswith("s3://")
    students = 0
    for need in here:
        if need.phase in TRAINING_PHASES:
            share = need.memory.states * spec.trainer.num_proc_per_node
            one = width * need.total
            before = one if in_bucket and not begins else 0
            students = max(students, before + max(one, share + width * need.trained))
    return Room(stage=stage, copies=sum(copies.values()), students=students)


def _bytes(listing: Listing, *, on_hub: bool) -> int:
    if listing.folder is not None or (listing.source.startswith("hf://") and not on_hub):
        return 0
    return sum(entry.size for entry in listing.files.values())


def keeps_hub_in(scratch: Path) -> bool:
    """Whether the hub's client keeps its copies in the scratch folder, as in a pod, whose home it is."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface"
    )
    return Path(home).absolute().is_relative_to(scratch.absolute())


def room_in(scratch: Path) -> int:
    """Bytes that are free in a folder, or would be in one that is not made yet, and what is there already: an attempt that goes on
    needs no second copy of it."""
    there = next(folder for folder in (scratch.absolute(), *scratch.absolute().parents) if folder.exists())
    used = sum(_size(os.path.join(folder, name)) for folder, _, names in os.walk(scratch) for name in names)
    return shutil.disk_usage(there).free + used


def _size(path: str) -> int:
    """On the disk; 0 of a file that has gone since it was listed."""
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


def judge(room: Room, *, limit: str | None, there: int | None) -> str:
    """What is to be said of the scratch folder. `limit`: `spec.trainer.scratch.sizeLimit`; `there`: bytes that this one has room for,
    None where it is not the stages'.

    Raises:
        UserError: every pod of the stage would be evicted.
    """
    if limit is not None and room.total > amount(limit):
        raise UserError(f"{FIELD} is {limit}, but {room.words}; raise it to {_rounded(room.total)} or more")
    if there is not None and room.total > there:
        return Caution(
            f"{room.words}, and the scratch folder here has room for {gib(there)}; free some, or give a larger one"
        )
    known = f" of {gib(there)} here" if there is not None else f" of {limit}" if limit is not None else ""
    return f"{room.words}{known}"


def _rounded(count: int) -> str:
    """With a fifth more, in whole GiB."""
    return f"{-(-count * 6 // 5 // (1 << 30))}Gi"
