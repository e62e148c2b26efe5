"""What several phases read: pools of the manifest, cleaned, and models by their names. All ranks come to the same
result."""

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from comd_api.exit_codes import BadDataError
from comd_api.recipe import Decoding
from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_trainer.context import PhaseContext
from comd_trainer.data.annotations import Annotation, read_annotations
from comd_trainer.data.hygiene import EvaluationData, remove_overlap
from comd_trainer.data.images import ImageFacts, Images, look_at_all
from comd_trainer.data.instructions import (
    Rows,
    check_share,
    drop_items,
    examples,
    metric_reason,
    original_reason,
    read_rows,
)
from comd_trainer.data.rows import Item, Origin
from comd_trainer.data.rows import read_rows as read_own_rows
from comd_trainer.generation.base import fingerprint_of
from comd_trainer.store.artifacts import Artifact

log = logging.getLogger(__name__)

CACHE_FILE = "cache.jsonl"
"""C_r, in artifacts where it is more than the train pool."""
FACTS_FORMAT = 1
"""Raised when what is noted of an image changes."""
FACTS_BATCH = 256


def pool_recipe(spec: RunSpec, fingerprints: Mapping[str, str], source: str) -> dict[str, Any]:
    """What the items read from one of the manifest's instruction files depend on."""
    return {
        "source": fingerprints[source],
        "images": fingerprints[spec.data.images],
        "evaluation": [[fingerprints[each.items], each.metric] for each in spec.data.evaluation],
        "maxBadRowFraction": spec.data.max_bad_row_fraction,
    }


def decoding_recipe(decoding: Decoding) -> dict[str, Any]:
    """What an answer depends on; the batch size is none of it."""
    return {"temperature": decoding.temperature, "topP": decoding.top_p, "maxNewTokens": decoding.max_new_tokens}


def answering_recipe(spec: RunSpec, fingerprints: Mapping[str, str], *, teacher: Decoding) -> dict[str, Any]:
    """What the teacher's answers depend on besides the items."""
    return {
        "teacher": fingerprint_of(spec.teacher, fingerprints),
        "teacherDecoding": decoding_recipe(teacher),
        "precision": spec.training.precision,
        "seed": spec.seed,
    }


def bank_recipe(spec: RunSpec, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    assert spec.data.bank is not None, "the contract's rules ask for data.bank where it is drawn from"
    return pool_recipe(spec, fingerprints, spec.data.bank)


def augmenting_recipe(config: StageConfig, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What the phase `augment` depends on, by the kind of augmentor."""
    spec, rounds = config.spec, config.spec.rounds
    kind = spec.augmentor.type
    found: dict[str, Any] = {
        "round": config.round,
        "type": kind,
        "seed": spec.seed,
        "replayFraction": rounds.replay_fraction,
    }
    if kind == "Repeat":
        return found
    found["wanted"] = rounds.augmentation.to_wire()
    found["freshItems"] = rounds.assessment.fresh_items
    if kind != "Random":
        # With too few hard items nothing is made. That stands in the meta of `assess`, which its digest leaves out.
        found["hardItemsFloor"] = rounds.hard_items_floor
    if kind != "Chat":
        return {**found, "bank": bank_recipe(spec, fingerprints)}
    return {
        **found,
        "chat": spec.augmentor.chat.to_wire(),
        "model": fingerprint_of(spec.augmentor.model or spec.teacher, fingerprints),
        "decoding": decoding_recipe(spec.generation.augmentor),
        "checker": fingerprint_of(spec.assessor.model or spec.teacher, fingerprints)
        if spec.augmentor.chat.check_answerable
        else None,
        "checkerDecoding": decoding_recipe(spec.generation.assessor) if spec.augmentor.chat.check_answerable else None,
        "precision": spec.training.precision,
        "deduplication": rounds.deduplication.to_wire(),
        "images": fingerprints[spec.data.images],
        "annotations": fingerprints[spec.data.annotations] if spec.data.annotations else None,
        "evaluation": [[fingerprints[each.items], each.metric] for each in spec.data.evaluation],
        "maxBadRowFraction": spec.data.max_bad_row_fraction,
    }


def read_seed(ctx: PhaseContext, *, needs_answer: bool) -> tuple[list[Item], dict[str, Any]]:
    """The seed pool without bad rows and without what the student is evaluated on, and what to say of that in the
    manifest."""
    rows = _read(
        ctx,
        ctx.spec.data.seed.instructions,
        field="data.seed.instructions",
        prefix="seed/",
        origin="seed",
        reason=original_reason if needs_answer else None,
    )
    return _clean(ctx, rows, field="data.seed.instructions")


def read_bank(ctx: PhaseContext) -> tuple[list[Item], dict[str, Any]]:
    """The bank, as `read_seed`. Whoever takes an item out of it sets origin and round."""
    source = ctx.spec.data.bank
    assert source is not None, "the contract's rules ask for data.bank where it is drawn from"
    return _clean(ctx, _read(ctx, source, field="data.bank", prefix="bank/", origin="random"), field="data.bank")


def read_evaluation(ctx: PhaseContext) -> dict[str, list[Item]]:
    """The evaluation sets by name; ids are the rows' own."""
    return {
        each.name: list(
            _read(
                ctx,
                each.items,
                field=f"data.evaluation[{each.name}].items",
                prefix="",
                origin="seed",
                reason=lambda item, metric=each.metric: metric_reason(item, metric),  # type: ignore[misc]
            ).items
        )
        for each in ctx.spec.data.evaluation
    }


def evaluation_data(ctx: PhaseContext) -> EvaluationData:
    items = [item for rows in read_evaluation(ctx).values() for item in rows]
    return EvaluationData(items, image_facts(ctx, _images(items)))


def cache_pool(ctx: PhaseContext) -> list[Item]:
    """C_r: in round 1 the seed, which is also the train pool (method section 4d), after what the run started from."""
    return all_items(ctx.artifacts["teach" if ctx.config.round == 1 else "pools"])


def all_items(artifact: Artifact) -> list[Item]:
    """Every item up to an artifact of `augment`, or of round 1's `teach`, where the train pool may be all."""
    return read_own_rows(artifact.path(CACHE_FILE if CACHE_FILE in artifact.files else "items.jsonl"), Item)


def read_carried(ctx: PhaseContext, *, needs_answer: bool) -> tuple[list[Item], dict[str, Any]]:
    """The items of the run that this one starts from, and what to say of that: without those whose image is not there any more, those that
    are evaluated on now and, where a known answer is needed of each, those that have none."""
    items = all_items(ctx.artifacts["pools"])
    facts = image_facts(ctx, _images(items))
    usable = [item for item in items if item.image is None or facts[item.image].error is None]
    usable = [item for item in usable if item.reference is not None or not needs_answer]
    report: dict[str, Any] = {"unusable": len(items) - len(usable)}
    if not ctx.spec.data.evaluation:
        return usable, report
    cleaned = remove_overlap(usable, facts=facts, evaluation=evaluation_data(ctx))
    return cleaned.items, {**report, "evaluationOverlap": cleaned.report()}


def annotations_of(ctx: PhaseContext) -> dict[str, Annotation]:
    """By image; empty when the manifest has none."""
    source = ctx.spec.data.annotations
    if source is None:
        return {}
    path = ctx.sources.file(source, field="spec.data.annotations")
    return read_annotations(
        path, field="data.annotations", source=source, max_bad_fraction=ctx.spec.data.max_bad_row_fraction
    )


def image_facts(ctx: PhaseContext, names: Collection[str]) -> dict[str, ImageFacts]:
    """What is known of each image. Every image of a folder is decoded once, by one rank, and never again while its
    content stays."""
    from comd_trainer.generation.sharing import complete
    from comd_trainer.store.calls import CallCache

    fingerprint = ctx.fingerprints[ctx.spec.data.images].removeprefix("sha256:")
    keys = {name: _key(name) for name in sorted(names)}
    known, _ = complete(
        ctx,
        cache=CallCache(ctx.store, f"cache/images/{fingerprint[:32]}-{FACTS_FORMAT}"),
        keys=list(keys.values()),
        label="images",
        open_worker=lambda: _Looker(ctx),
    )
    return {name: ImageFacts(**known[key]) for name, key in keys.items()}


def _key(name: str) -> str:
    """The cache wants hexadecimal keys."""
    return name.encode("utf-8", "surrogatepass").hex()


class _Looker:
    """Decodes images, as the worker that `complete` shares among ranks."""

    def __init__(self, ctx: PhaseContext) -> None:
        self.images = Images(ctx.sources.folder(ctx.spec.data.images, field="spec.data.images"))
        self.threads = max(1, (os.cpu_count() or 1) // ctx.num_local_ranks)

    def plan(self, keys: Sequence[str]) -> list[list[str]]:
        return [list(keys[start : start + FACTS_BATCH]) for start in range(0, len(keys), FACTS_BATCH)]

    def run(self, keys: Sequence[str], on_results: Callable[[list[tuple[str, dict[str, Any]]]], None]) -> None:
        for batch in self.plan(keys):
            names = [bytes.fromhex(key).decode("utf-8", "surrogatepass") for key in batch]
            facts = look_at_all(self.images, names, threads=self.threads)
            on_results([(_key(name), asdict(fact)) for name, fact in facts.items()])


def _read(
    ctx: PhaseContext,
    source: str,
    *,
    field: str,
    prefix: str,
    origin: Origin,
    reason: Callable[[Item], str | None] | None = None,
) -> Rows:
    rows = read_rows(ctx.sources.file(source, field=f"spec.{field}"), field=field, prefix=prefix, origin=origin)
    facts = image_facts(ctx, _images(rows.items))
    rows = drop_items(rows, lambda item: facts[item.image].error if item.image is not None else None)
    if reason is not None:
        rows = drop_items(rows, reason)
    check_share(rows, field=field, source=source, max_bad_fraction=ctx.spec.data.max_bad_row_fraction)
    if rows.bad and ctx.is_first:
        log.warning(
            "%s: %d of %d rows can't be used and are left out: %s", field, len(rows.bad), rows.total, examples(rows.bad)
        )
    return rows


def _clean(ctx: PhaseContext, rows: Rows, *, field: str) -> tuple[list[Item], dict[str, Any]]:
    meta: dict[str, Any] = {"rows": rows.total, "badRows": len(rows.bad), "badRowExamples": list(rows.bad[:5])}
    if not ctx.spec.data.evaluation:
        return list(rows.items), meta
    cleaned = remove_overlap(rows.items, facts=image_facts(ctx, _images(rows.items)), evaluation=evaluation_data(ctx))
    meta["evaluationOverlap"] = cleaned.report()
    if cleaned.removed and ctx.is_first:
        log.warning("%s: %d items are left out, because data.evaluation holds them too", field, len(cleaned.removed))
    if not cleaned.items:
        raise BadDataError(
            f"{field}: all {len(rows.items)} items are also in data.evaluation; give other instructions to learn from"
        )
    return cleaned.items, meta


def _images(items: Collection[Item]) -> set[str]:
    return {item.image for item in items if item.image is not None}
