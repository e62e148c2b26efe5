"""Asks the judge about pairs of answers, in both orders, and asks again where a reply does not parse (method section
12, rows 13-16)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from comd_api.recipe import Decoding
from comd_api.roles import Model
from comd_trainer import metrics
from comd_trainer.context import PhaseContext
from comd_trainer.data.annotations import Annotation
from comd_trainer.data.rows import Answer, Item, Review
from comd_trainer.data.seeds import derive
from comd_trainer.generation.base import Request, fingerprint_of
from comd_trainer.judging.parse import parse_scores
from comd_trainer.judging.prompts import ORDERS, Order, in_order, judge_turns, review_of
from comd_trainer.phases.inputs import annotations_of

WARMER = 0.2
"""What each further attempt adds to the temperature, up to 1: at the old one a model tends to fail in the old way."""


class Compared(NamedTuple):
    item: Item
    teacher: Answer
    student: Answer


def ask_judge(ctx: PhaseContext, compared: Sequence[Compared], *, model: Model, field: str) -> list[Review]:
    """All replies, in the order of items, orders and attempts. Both orders of an item stand side by side in each
    request, so that what they have in common is read once by a service that keeps prefixes."""
    from comd_trainer.generation.calls import cached_generate

    options = ctx.spec.assessor.judge
    annotations = {} if options.evidence == "Image" else annotations_of(ctx)
    judged = [
        row
        for row in compared
        if options.evidence != "Annotations" or row.item.image is None or row.item.image in annotations
    ]
    open_pairs: list[tuple[Compared, Order]] = [(row, order) for row in judged for order in ORDERS]
    reviews: dict[tuple[str, Order], list[Review]] = {(row.item.id, order): [] for row, order in open_pairs}
    for result in ("parsed", "asked_again", "dropped"):
        metrics.add(metrics.JUDGE_REPLIES, 0, result=result)
    for attempt in range(options.max_attempts):
        if not open_pairs:
            break
        unread = "asked_again" if attempt + 1 < options.max_attempts else "dropped"
        replies = cached_generate(
            ctx,
            model=model,
            role="assessor",
            fingerprint=fingerprint_of(model, ctx.fingerprints),
            requests=[
                judge_request(row, order, attempt=attempt, annotations=annotations, seed=ctx.spec.seed)
                for row, order in open_pairs
            ],
            decoding=warmer(ctx.spec.generation.assessor, attempt=attempt),
            field=field,
            on_reply=partial(count_reply, unread=unread),
        )
        for row, order in open_pairs:
            reviews[row.item.id, order].append(review_of(row.item.id, order, replies[key_of(row.item, order)].text))
        open_pairs = [(row, order) for row, order in open_pairs if reviews[row.item.id, order][-1].teacher is None]
    return [review for given in reviews.values() for review in given]


def count_reply(text: str, *, unread: str) -> None:
    """`unread`: what follows when it does not parse."""
    metrics.add(metrics.JUDGE_REPLIES, result="parsed" if parse_scores(text) is not None else unread)


def judge_request(
    row: Compared, order: Order, *, attempt: int, annotations: Mapping[str, Annotation], seed: int
) -> Request:
    """The prompt for one order. An image with annotations is read, any other is seen."""
    first, second = in_order(order, teacher=row.teacher, student=row.student)
    annotation = annotations.get(row.item.image or "")
    return Request(
        key=key_of(row.item, order),
        turns=judge_turns(row.item, first=first, second=second, annotation=annotation),
        image=row.item.image if annotation is None else None,
        seed=derive(seed, "judge", row.item.id, order, attempt),
    )


def key_of(item: Item, order: Order) -> str:
    return f"{order}/{item.id}"


def warmer(decoding: Decoding, *, attempt: int) -> Decoding:
    """The decoding of attempt 0, 1, 2 …"""
    assert decoding.temperature is not None, "the supervisor resolves the spec"
    return decoding.replace(temperature=max(decoding.temperature, min(1.0, decoding.temperature + WARMER * attempt)))
