"""New items where the student lost and, against forgetting, where it did not; then the pools of the next round
(method sections 4c, 4d and 6)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comd_api.exit_codes import BadDataError
from comd_api.stage import StageConfig
from comd_trainer.context import PhaseContext
from comd_trainer.data.rows import Candidate, Item, Verdict, read_rows, write_rows
from comd_trainer.phases.inputs import CACHE_FILE, augmenting_recipe, cache_pool, read_bank
from comd_trainer.phases.write import count_candidates, write_new
from comd_trainer.pools.branch import reasons_of
from comd_trainer.pools.parents import Parents, split
from comd_trainer.pools.retrieval import pick_easy, retrieve_hard
from comd_trainer.pools.selection import draw, unused
from comd_trainer.pools.update import next_cache, next_train

INPUTS = ("teach", "answer", "assess", "pools")


def recipe(config: StageConfig, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    return augmenting_recipe(config, fingerprints)


def run(ctx: PhaseContext) -> None:
    spec, kind = ctx.spec, ctx.spec.augmentor.type
    cache = cache_pool(ctx)
    stopped = kind in ("Chat", "Retrieval") and bool(ctx.artifacts["assess"].meta.get("stop"))
    if kind == "Repeat" or stopped:
        finish(
            ctx,
            new=[],
            train=read_rows(ctx.artifacts["teach"].path("items.jsonl"), Item),
            cache=cache,
            candidates=[],
            meta={},
        )
        return
    fresh: list[Item] = []
    candidates: list[Candidate] = []
    if kind == "Random":
        new, meta = random_new(ctx, cache)
    else:
        compared = read_rows(ctx.artifacts["answer"].path("items.jsonl"), Item)
        fresh = [item for item in compared if item.origin == "fresh" and item.round == ctx.config.round]
        hard, easy = parents_of(ctx, compared)
        if kind == "Retrieval":
            new, meta = retrieve_new(ctx, hard=hard, easy=easy, pool=cache + fresh)
        else:
            new, candidates, meta = write_new(ctx, hard=hard, easy=easy, pool=cache + fresh)
    assert spec.rounds.replay_fraction is not None, "the supervisor resolves the spec"
    train = next_train(
        new=new,
        fresh=fresh,
        earlier=cache,
        replay_fraction=spec.rounds.replay_fraction,
        round=ctx.config.round,
        seed=spec.seed,
    )
    if kind != "Chat":
        candidates = [accepted_candidate(item) for item in new]
        count_candidates(ctx, candidates)
    finish(
        ctx, new=new, train=train, cache=next_cache(cache=cache, new=new, fresh=fresh), candidates=candidates, meta=meta
    )


def parents_of(ctx: PhaseContext, compared: list[Item]) -> tuple[Parents, Parents]:
    """What hard and easy items are made from. A round without easy items makes its easier ones from the hard ones as
    well, for without any the next train pool would hold one kind only."""
    order, seed, round_ = ctx.spec.rounds.augmentation.seed_order, ctx.spec.seed, ctx.config.round
    verdicts = read_rows(ctx.artifacts["assess"].path("verdicts.jsonl"), Verdict)
    gaps = {verdict.item: verdict.gap or 0.0 for verdict in verdicts}
    hard, easy = split(compared, verdicts)
    hard_parents = Parents(
        hard or easy,
        order=order,
        weights=[gaps[item.id] or 1.0 for item in hard or easy],
        seed=seed,
        names=("hard", round_),
    )
    return hard_parents, Parents(easy or hard, order="Cycle", seed=seed, names=("easy", round_))


def retrieve_new(
    ctx: PhaseContext, *, hard: Parents, easy: Parents, pool: list[Item]
) -> tuple[list[Item], dict[str, Any]]:
    """`Retrieval`: the bank items most like the hard ones, and rare ones for the easy branch."""
    wanted, seed, round_ = ctx.spec.rounds.augmentation, ctx.spec.seed, ctx.config.round
    bank, report = read_bank(ctx)
    left = unused(bank, pool)
    found = retrieve_hard(left, hard, wanted=wanted.hard_items, round=round_, seed=seed)
    _check(len(found), wanted.hard_items, field="hardItems", bank=bank, left=left, kind="like the hard ones")
    taken = {item.id for item in found}
    rest = [item for item in left if item.id not in taken]
    rare = pick_easy(
        rest,
        easy,
        pool=pool + found,
        wanted=wanted.easy_items,
        candidates=wanted.easy_candidates,
        round=round_,
        seed=seed,
    )
    _check(len(rare), wanted.easy_items, field="easyItems", bank=bank, left=rest, kind="left")
    return found + rare, {"bank": report}


def random_new(ctx: PhaseContext, cache: list[Item]) -> tuple[list[Item], dict[str, Any]]:
    """`Random`: any bank items, as many as the competition would add to the train pool, so that both pay for equally
    many teacher answers to learn from: its new ones, and the fresh ones that it compares."""
    rounds = ctx.spec.rounds
    wanted = rounds.augmentation.hard_items + rounds.augmentation.easy_items + rounds.assessment.fresh_items
    bank, report = read_bank(ctx)
    left = unused(bank, cache)
    _check(len(left), wanted, field="hardItems + easyItems + assessment.freshItems", bank=bank, left=left, kind="left")
    drawn = draw(left, wanted, seed=ctx.spec.seed, name="random", round=ctx.config.round)
    return [replace(item, origin="random", round=ctx.config.round) for item in drawn], {"bank": report}


def accepted_candidate(item: Item) -> Candidate:
    return Candidate(parent=item.parent or "", branch=item.origin, text=item.instruction, accepted=True)


def finish(
    ctx: PhaseContext,
    *,
    new: list[Item],
    train: list[Item],
    cache: list[Item],
    candidates: list[Candidate],
    meta: dict[str, Any],
) -> None:
    """Writes the pools of the next round. Rank 0 alone; the others have come to the same ones."""
    if not ctx.is_first:
        return
    write_rows(ctx.out / "new.jsonl", new)
    write_rows(ctx.out / "train.jsonl", train)
    write_rows(ctx.out / CACHE_FILE, cache)
    write_rows(ctx.out / "candidates.jsonl", candidates)
    rejected = sum(not candidate.accepted for candidate in candidates)
    counts = {"accepted": len(new), "rejected": rejected}
    sizes = {"train": len(train), "cache": len(cache)}
    ctx.set_meta({**meta, "counts": counts, "rejectedByReason": reasons_of(candidates), "pools": sizes})


def _check(found: int, wanted: int, *, field: str, bank: list[Item], left: list[Item], kind: str) -> None:
    if found < wanted:
        raise BadDataError(
            f"rounds.augmentation.{field} asks for {wanted} items, but data.bank gives {found}: "
            f"of its {len(bank)} usable items {len(left)} are not in a pool yet, and {found} of these are {kind}; "
            "give a larger bank or ask for fewer"
        )
