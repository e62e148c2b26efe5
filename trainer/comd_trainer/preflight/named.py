"""Everything that a run reads, by the field of the manifest that names it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from comd_api.roles import Model
from comd_api.run import RunSpec
from comd_trainer.store import hub

Kind = Literal["file", "folder", "checkpoint", "language-model", "vision-tower"]
VISION_FIELD = "spec.student.composed.visionTower.source"
LANGUAGE_FIELD = "spec.student.composed.languageModel.source"
STUDENT_FIELD = "spec.student.checkpoint.source"
IMAGES_FIELD = "spec.data.images"
SEED_FIELD = "spec.data.seed.instructions"
BANK_FIELD = "spec.data.bank"
PRETRAINING_FIELD = "spec.data.pretraining"
ANNOTATIONS_FIELD = "spec.data.annotations"


@dataclass(frozen=True, kw_only=True)
class NamedSource:
    """A source of the manifest and the field that names it."""

    field: str
    source: str
    kind: Kind

    @property
    def is_model(self) -> bool:
        return self.kind not in ("file", "folder")


def named_sources(spec: RunSpec) -> Iterator[NamedSource]:
    """Everything that a run reads, in the order of the manifest."""
    if spec.student.composed is not None:
        parts = spec.student.composed
        yield NamedSource(field=VISION_FIELD, source=parts.vision_tower.source, kind="vision-tower")
        yield NamedSource(field=LANGUAGE_FIELD, source=parts.language_model.source, kind="language-model")
    if spec.student.checkpoint is not None:
        yield NamedSource(field=STUDENT_FIELD, source=spec.student.checkpoint.source, kind="checkpoint")
    for field, model in answering_models(spec):
        if model.checkpoint is not None:
            yield NamedSource(field=checkpoint_field(field), source=model.checkpoint.source, kind="checkpoint")
    data = spec.data
    yield NamedSource(field=IMAGES_FIELD, source=data.images, kind="folder")
    yield NamedSource(field=SEED_FIELD, source=data.seed.instructions, kind="file")
    for field, source in (
        (PRETRAINING_FIELD, data.pretraining),
        (BANK_FIELD, data.bank),
        (ANNOTATIONS_FIELD, data.annotations),
    ):
        if source is not None:
            yield NamedSource(field=field, source=source, kind="file")
    for index, evaluation in enumerate(data.evaluation):
        yield NamedSource(field=evaluation_field(index), source=evaluation.items, kind="file")


def answering_models(spec: RunSpec) -> Iterator[tuple[str, Model]]:
    """The models that only answer, each with its field."""
    for field, model in (
        ("spec.teacher", spec.teacher),
        ("spec.assessor.model", spec.assessor.model),
        ("spec.augmentor.model", spec.augmentor.model),
    ):
        if model is not None:
            yield field, model


def checkpoint_field(field: str) -> str:
    """Of a model that only answers: `spec.teacher` → `spec.teacher.checkpoint.source`."""
    return f"{field}.checkpoint.source"


def evaluation_field(index: int) -> str:
    return f"spec.data.evaluation[{index}].items"


def find_revisions(spec: RunSpec) -> dict[str, str]:
    """The commit that each `hf://` source stands for now, by source. Errors: as `hub.commit_of`."""
    by_source = {one.source: one.field for one in named_sources(spec) if one.source.startswith("hf://")}
    return {source: hub.commit_of(source, field=field) for source, field in by_source.items()}


def pinned(spec: RunSpec, meta: Mapping[str, Any]) -> RunSpec:
    """The spec with every `hf://` source at the commit that `preflight` saw, so that a branch which moves under a run changes
    nothing. `meta`: of preflight's artifact, or at least its `revisions`."""
    revisions: Mapping[str, str] = meta.get("revisions", {})
    if not revisions:
        return spec

    def pin(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: pin(part) for name, part in value.items()}
        if isinstance(value, list):
            return [pin(part) for part in value]
        if isinstance(value, str) and value in revisions:
            return hub.at_commit(value, revisions[value], field="spec")
        return value

    return RunSpec.model_validate(pin(spec.to_wire()))
