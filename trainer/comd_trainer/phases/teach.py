"""The teacher answers the train pool (method section 4a): what the student is tuned on in this round."""

from collections.abc import Mapping
from typing import Any

from comd_api.stage import StageConfig
from comd_trainer.context import PhaseContext
from comd_trainer.data.rows import Answer, Item, read_rows, write_rows
from comd_trainer.generation.base import fingerprint_of
from comd_trainer.phases.inputs import CACHE_FILE, answering_recipe, pool_recipe, read_carried, read_seed
from comd_trainer.pools.carry import carry

INPUTS = ("pools",)


def recipe(config: StageConfig, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    spec = config.spec
    seed = {**pool_recipe(spec, fingerprints, spec.data.seed.instructions), "targets": spec.data.seed.targets}
    if spec.start_from is not None:
        seed |= {"replayFraction": spec.rounds.replay_fraction, "answered": spec.assessor.type == "Reference"}
    return {
        "round": config.round,
        "images": fingerprints[spec.data.images],
        "seedPool": seed if config.round == 1 else None,
        **answering_recipe(spec, fingerprints, teacher=spec.generation.teacher),
    }


def run(ctx: PhaseContext) -> None:
    from comd_trainer.generation.answering import answer_items

    spec = ctx.spec
    own = ctx.config.round == 1 and spec.data.seed.targets == "Original"
    items, cache, meta = train_pool(ctx, needs_answer=own)
    if own:
        answers, made = [original_answer(item) for item in items], 0
    else:
        answers, made = answer_items(
            ctx,
            role="teacher",
            model=spec.teacher,
            fingerprint=fingerprint_of(spec.teacher, ctx.fingerprints),
            items=items,
            decoding=spec.generation.teacher,
            field="spec.teacher",
        )
    if not ctx.is_first:
        return
    write_rows(ctx.out / "items.jsonl", items)
    write_rows(ctx.out / "answers.jsonl", answers)
    if cache is not None:
        write_rows(ctx.out / CACHE_FILE, cache)
    cut = sum(answer.finish == "length" for answer in answers)
    ctx.set_meta({**meta, "counts": {"train": len(items), "teacherAnswers": made}, "cutAnswers": cut})


def train_pool(ctx: PhaseContext, *, needs_answer: bool) -> tuple[list[Item], list[Item] | None, dict[str, Any]]:
    """X_r: the seed in round 1, what of it is new to the run that this one starts from, later what the round before has made. And C_1 where
    it is more than X_1."""
    if ctx.config.round > 1:
        return read_rows(ctx.artifacts["pools"].path("train.jsonl"), Item), None, {}
    seed, report = read_seed(ctx, needs_answer=needs_answer)
    if "pools" not in ctx.artifacts:
        return seed, None, {"seedPool": report}
    earlier, dropped = read_carried(ctx, needs_answer=needs_answer or ctx.spec.assessor.type == "Reference")
    assert ctx.spec.rounds.replay_fraction is not None, "the supervisor resolves the spec"
    carried = carry(earlier, seed, replay_fraction=ctx.spec.rounds.replay_fraction, seed=ctx.spec.seed)
    numbers = {"new": carried.num_new, "replayed": carried.num_replayed, "earlier": len(earlier)}
    return carried.train, carried.cache, {"seedPool": report, "carried": {**numbers, **dropped}}


def original_answer(item: Item) -> Answer:
    """`seed.targets: Original`: the row's own answer in place of the teacher's (method section 12, row 5)."""
    assert item.reference is not None, "rows without an answer were left out when the file was read"
    return Answer(item=item.id, model="original", text=item.reference, finish="stop")
