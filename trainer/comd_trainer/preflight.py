"""The stage `preflight`: what can be known before a model is loaded or a GPU is asked for.

Every source of the manifest is found and fingerprinted, rows are read, model folders are looked through, numbers are held against what
there is. Its artifact carries the fingerprints that all later keys are made from, so that a file which changes under a running run
does not silently change what the run is about.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from comd_api.exit_codes import BadDataError, UserError
from comd_api.roles import Model
from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_api.stages import competes
from comd_trainer.data.annotations import read_annotations
from comd_trainer.data.instructions import check_share, drop_items, metric_reason, original_reason, read_rows
from comd_trainer.data.pairs import read_pairs
from comd_trainer.data.rows import Item
from comd_trainer.generation.endpoint import read_key
from comd_trainer.keys import phase_key, phase_prefix
from comd_trainer.store.artifacts import Artifact, open_artifact, publish
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import Store

log = logging.getLogger(__name__)

Kind = Literal["file", "folder", "checkpoint", "language-model", "vision-tower"]


@dataclass(frozen=True, kw_only=True)
class NamedSource:
    """A source of the manifest and the field that names it."""

    field: str
    source: str
    kind: Kind


def named_sources(spec: RunSpec) -> Iterator[NamedSource]:
    """Everything that a run reads, in the order of the manifest."""
    if spec.student.composed is not None:
        parts = spec.student.composed
        yield NamedSource(
            field="spec.student.composed.visionTower.source", source=parts.vision_tower.source, kind="vision-tower"
        )
        yield NamedSource(
            field="spec.student.composed.languageModel.source",
            source=parts.language_model.source,
            kind="language-model",
        )
    if spec.student.checkpoint is not None:
        yield NamedSource(
            field="spec.student.checkpoint.source", source=spec.student.checkpoint.source, kind="checkpoint"
        )
    for field, model in answering_models(spec):
        if model.checkpoint is not None:
            yield NamedSource(field=f"{field}.checkpoint.source", source=model.checkpoint.source, kind="checkpoint")
    data = spec.data
    yield NamedSource(field="spec.data.images", source=data.images, kind="folder")
    yield NamedSource(field="spec.data.seed.instructions", source=data.seed.instructions, kind="file")
    for field, source in (
        ("spec.data.pretraining", data.pretraining),
        ("spec.data.bank", data.bank),
        ("spec.data.annotations", data.annotations),
    ):
        if source is not None:
            yield NamedSource(field=field, source=source, kind="file")
    for index, evaluation in enumerate(data.evaluation):
        yield NamedSource(field=f"spec.data.evaluation[{index}].items", source=evaluation.items, kind="file")


def answering_models(spec: RunSpec) -> Iterator[tuple[str, Model]]:
    """The models that only answer, each with its field."""
    for field, model in (
        ("spec.teacher", spec.teacher),
        ("spec.assessor.model", spec.assessor.model),
        ("spec.augmentor.model", spec.augmentor.model),
    ):
        if model is not None:
            yield field, model


def check(config: StageConfig, *, store: Store, sources: Sources, cache: Path, scratch: Path) -> Artifact:
    """Checks everything and publishes the artifact `preflight`.

    Raises:
        UserError: a source is missing, a model can't be used, or the numbers ask for more than there is.
        BadDataError: a file's rows can't be used.
        TryAgainError: the store is unreachable.
    """
    spec = config.spec
    wanted = list(named_sources(spec))
    composed = spec.student.composed
    for one in wanted:
        given = (
            one.kind == "language-model" and composed is not None and composed.language_model.chat_template is not None
        )
        check_model_folder(one, sources, template_given=given)
    for field, model in answering_models(spec):
        if model.endpoint is not None:
            read_key(model.endpoint, field=f"{field}.endpoint")
    rows = count_rows(spec, sources)
    check_numbers(spec, bank_rows=rows.get("spec.data.bank"), seed_rows=rows["spec.data.seed.instructions"])
    fingerprints = take_fingerprints(wanted, sources)
    report = {"rows": rows, "fingerprints": fingerprints}
    key = phase_key(phase="preflight", recipe={"spec": _lasting(config), **report}, inputs={})
    prefix = phase_prefix(config, "preflight", key)
    found = open_artifact(store, prefix, cache_dir=cache)
    if found is not None:
        return found
    out = scratch / "preflight" / "out"
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True))
    return publish(store, prefix=prefix, kind="preflight", key=key, folder=out, meta=report, cache_dir=cache)


def check_model_folder(one: NamedSource, sources: Sources, *, template_given: bool = False) -> None:
    """Looks through a model's folder without loading anything: layout, weights without pickle, chat template."""
    if one.kind in ("file", "folder"):
        return
    folder = sources.folder(one.source, field=one.field)
    if not (folder / "config.json").is_file():
        raise UserError(f"{one.field} ({one.source}) has no config.json; it must be a folder in Hugging Face layout")
    check_json(one, folder)
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{one.field} ({one.source}) has no *.safetensors; pickled weights are not loaded, convert them with save_pretrained"
        )
    for path in sorted(folder.glob("*.safetensors")):
        if not is_whole(path):
            raise UserError(
                f"{one.field} ({one.source}): {path.name} is torn, it is shorter or longer than its header says; "
                "put a whole copy of the checkpoint there"
            )
    if one.kind != "vision-tower" and not any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")
    ):
        raise UserError(f"{one.field} ({one.source}) has no tokenizer (tokenizer.json or tokenizer.model)")
    if one.kind != "vision-tower" and not template_given and not has_chat_template(folder):
        mend = (
            "set student.composed.languageModel.chatTemplate"
            if one.kind == "language-model"
            else "add a chat_template.jinja to the folder"
        )
        raise UserError(f"{one.field} ({one.source}) has a tokenizer without a chat template; {mend}")
    if one.kind != "language-model" and not any(
        (folder / name).is_file()
        for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
    ):
        if one.kind == "vision-tower" or one.field.startswith("spec.student."):
            raise UserError(f"{one.field} ({one.source}) has no image processor (preprocessor_config.json)")
        log.info("%s has no image processor: it is taken for a model of text alone", one.field)


def check_json(one: NamedSource, folder: Path) -> None:
    """Every JSON file of a model's folder must be some: a torn download shows here, and not hours later."""
    for path in sorted(folder.glob("*.json")):
        try:
            value = json.loads(path.read_bytes())
        except ValueError as error:
            raise UserError(
                f"{one.field} ({one.source}): {path.name} is not JSON ({error}); put a whole copy of the checkpoint there"
            ) from None
        if path.name.endswith("config.json") and not isinstance(value, dict):
            raise UserError(
                f"{one.field} ({one.source}): {path.name} holds no JSON object; put a whole copy of the checkpoint there"
            )


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says: 8 bytes with the header's length, the header (JSON), the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size - 8:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return path.stat().st_size == 8 + length + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError):
            return False


def has_chat_template(folder: Path) -> bool:
    """Whether a checkpoint's tokenizer or processor brings a chat template."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    for name in ("tokenizer_config.json", "processor_config.json"):
        path = folder / name
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("chat_template"):
            return True
    return False


def count_rows(spec: RunSpec, sources: Sources) -> dict[str, int]:
    """Usable rows of every data file, by field. Images are looked at when they are used."""
    data = spec.data
    counts: dict[str, int] = {}

    def count(field: str, source: str, reason: Callable[[Item], str | None] = lambda _: None) -> tuple[Item, ...]:
        rows = read_rows(sources.file(source, field=field), field=field, prefix="", origin="seed")
        rows = drop_items(rows, reason)
        check_share(rows, field=field, source=source, max_bad_fraction=data.max_bad_row_fraction)
        _check_first_images(rows.items, spec, sources, field=field)
        counts[field] = len(rows.items)
        return rows.items

    needs_answer = data.seed.targets == "Original"
    seed = count(
        "spec.data.seed.instructions", data.seed.instructions, original_reason if needs_answer else lambda _: None
    )
    check_known_answers(spec, seed, field="spec.data.seed.instructions")
    if data.bank is not None:
        check_known_answers(spec, count("spec.data.bank", data.bank), field="spec.data.bank")
    for index, evaluation in enumerate(data.evaluation):
        scored = partial(metric_reason, metric=evaluation.metric)
        count(f"spec.data.evaluation[{index}].items", evaluation.items, scored)
    if data.annotations is not None:
        path = sources.file(data.annotations, field="spec.data.annotations")
        counts["spec.data.annotations"] = len(
            read_annotations(
                path,
                field="spec.data.annotations",
                source=data.annotations,
                max_bad_fraction=data.max_bad_row_fraction,
            )
        )
    if spec.pretraining is not None and data.pretraining is not None:
        path = sources.file(data.pretraining, field="spec.data.pretraining")
        pairs = read_pairs(path, field="spec.data.pretraining", max_bad_fraction=data.max_bad_row_fraction)
        counts["spec.data.pretraining"] = len(pairs)
    return counts


def _check_first_images(items: tuple[Item, ...], spec: RunSpec, sources: Sources, *, field: str) -> None:
    """A wrong `data.images` shows on the first rows; each image is checked when its phase comes."""
    folder = sources.folder(spec.data.images, field="spec.data.images")
    names = [item.image for item in items[:20] if item.image is not None]
    if names and not any(os.path.isfile(folder / name) for name in names):
        raise BadDataError(
            f"spec.data.images ({spec.data.images}) holds none of the first images that {field} names, such as {names[0]!r}; "
            "image paths start below data.images"
        )


def check_known_answers(spec: RunSpec, items: tuple[Item, ...], *, field: str) -> None:
    """The assessor `Reference` drops items without a known answer, and too many of those fail the round."""
    if spec.assessor.type != "Reference" or not competes(spec):
        return
    missing = sum(item.reference is None for item in items)
    if missing > spec.assessor.judge.max_drop_fraction * len(items):
        raise BadDataError(
            f"{field}: {missing} of {len(items)} items have no answer, which assessor.type Reference compares with; "
            "add the field answer to the rows, or use another assessor"
        )


def check_numbers(spec: RunSpec, *, bank_rows: int | None, seed_rows: int) -> None:
    """Whether the pools can give what the rounds ask for."""
    rounds = spec.rounds
    augmentation = rounds.augmentation
    fresh = rounds.assessment.fresh_items
    if bank_rows is not None:
        per_round = (
            0 if spec.augmentor.type in ("Chat", "Repeat") else augmentation.hard_items + augmentation.easy_items
        )
        drawn = (rounds.count - 1) * (per_round + (0 if spec.augmentor.type == "Repeat" else fresh))
        if drawn > bank_rows:
            raise UserError(
                f"spec.rounds asks for {drawn} items of spec.data.bank over {rounds.count} rounds "
                f"(augmentation.hardItems {augmentation.hard_items} + easyItems {augmentation.easy_items} + assessment.freshItems {fresh} "
                f"each), but the bank holds {bank_rows}; lower them or give a larger bank"
            )
    compared = min(rounds.assessment.sample_size, seed_rows) + fresh
    if competes(spec) and rounds.count > 1 and rounds.hard_items_floor > compared:
        raise UserError(
            f"spec.rounds.hardItemsFloor is {rounds.hard_items_floor}, but round 1 compares only {compared} items "
            f"(of {seed_rows} seed instructions and {fresh} fresh ones); lower it or give more seed instructions"
        )


def take_fingerprints(wanted: list[NamedSource], sources: Sources) -> dict[str, str]:
    """Content digest by source, several at a time."""
    by_source = {one.source: one.field for one in wanted}
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = pool.map(lambda entry: sources.fingerprint(entry[0], field=entry[1]), by_source.items())
        return dict(zip(by_source, digests, strict=True))


def check_unchanged(spec: RunSpec, fingerprints: Mapping[str, str], sources: Sources) -> None:
    """Refuses a stage whose files of rows are not those that `preflight` saw: what is made of others would get the keys of these.
    Folders (images, models) are not hashed again for every stage.

    Raises:
        UserError: a file was changed since.
    """
    for one in named_sources(spec):
        if one.kind == "file" and sources.fingerprint(one.source, field=one.field) != fingerprints[one.source]:
            raise UserError(
                f"{one.field} ({one.source}) was changed after the stage preflight had looked at it; "
                "put it back, or start a new run under another name"
            )


def _lasting(config: StageConfig) -> Mapping[str, object]:
    """The part of the spec that says what the run is about."""
    wire = config.spec.to_wire()
    for name in RunSpec.MUTABLE:
        wire.pop(RunSpec.model_fields[name].alias or name, None)
    return wire
