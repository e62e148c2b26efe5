"""Teacher and student answer a sample of the cache pool, and fresh bank items besides (method section 4b; section 12,
row 11)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comd_api.exit_codes import BadDataError
from comd_api.stage import StageConfig
from comd_trainer.context import PhaseContext
from comd_trainer.data.rows import Item, write_rows
from comd_trainer.generation.base import fingerprint_of
from comd_trainer.phases.inputs import answering_recipe, bank_recipe, cache_pool, decoding_recipe, read_bank
from comd_trainer.pools.selection import draw, sample_for_assessment, unused

INPUTS = ("teach", "tune", "pools")


def recipe(config: StageConfig, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    spec = config.spec
    assessment = spec.rounds.assessment
    return {
        "round": config.round,
        "images": fingerprints[spec.data.images],
        "sampleSize": assessment.sample_size,
        "freshItems": 0 if config.last_round else assessment.fresh_items,
        "bank": bank_recipe(spec, fingerprints) if assessment.fresh_items and not config.last_round else None,
        **answering_recipe(spec, fingerprints, teacher=spec.generation.teacher),
        "studentDecoding": decoding_recipe(spec.generation.student),
    }


def run(ctx: PhaseContext) -> None:
    from comd_trainer.generation.answering import answer_items

    spec, tuned = ctx.spec, ctx.artifacts["tune"]
    cache = cache_pool(ctx)
    sample_size = spec.rounds.assessment.sample_size
    sample = sample_for_assessment(cache, round=ctx.config.round, sample_size=sample_size, seed=spec.seed)
    fresh, meta = fresh_items(ctx, cache)
    items = sample + fresh
    teacher, made = answer_items(
        ctx,
        role="teacher",
        model=spec.teacher,
        fingerprint=fingerprint_of(spec.teacher, ctx.fingerprints),
        items=items,
        decoding=spec.generation.teacher,
        field="spec.teacher",
    )
    student, _ = answer_items(
        ctx,
        role="student",
        model=tuned.folder(),
        fingerprint=tuned.digest,
        items=items,
        decoding=spec.generation.student,
        field="spec.student",
    )
    if not ctx.is_first:
        return
    write_rows(ctx.out / "items.jsonl", items)
    write_rows(ctx.out / "teacher.jsonl", teacher)
    write_rows(ctx.out / "student.jsonl", student)
    ctx.set_meta({**meta, "counts": {"compared": len(items), "fresh": len(fresh), "teacherAnswers": made}})


def fresh_items(ctx: PhaseContext, cache: list[Item]) -> tuple[list[Item], dict[str, Any]]:
    """Bank items that no pool holds yet, marked as this round's. None in the last round: nobody would learn from the teacher answers
    that they cost."""
    wanted = ctx.spec.rounds.assessment.fresh_items
    if not wanted or ctx.config.last_round:
        return [], {}
    bank, report = read_bank(ctx)
    left = unused(bank, cache)
    if len(left) < wanted:
        raise BadDataError(
            f"rounds.assessment.freshItems is {wanted}, but of the {len(bank)} usable items of data.bank "
            f"only {len(left)} are not in a pool yet; give a larger bank or ask for fewer"
        )
    drawn = draw(left, wanted, seed=ctx.spec.seed, name="fresh", round=ctx.config.round)
    return [replace(item, origin="fresh", round=ctx.config.round) for item in drawn], {"bank": report}
