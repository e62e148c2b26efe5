"""Items in, answers out: what `teach`, `answer` and `evaluate` ask of teacher and student (method sections 4a and
4b)."""

from collections.abc import Sequence
from pathlib import Path

from comd_api.exit_codes import BadDataError
from comd_api.recipe import Decoding
from comd_api.roles import Model
from comd_trainer.context import PhaseContext
from comd_trainer.data.rows import Answer, Item
from comd_trainer.data.seeds import derive
from comd_trainer.generation.base import Request
from comd_trainer.generation.calls import generate_counted


def answer_items(
    ctx: PhaseContext,
    *,
    role: str,
    model: Model | Path,
    fingerprint: str,
    items: Sequence[Item],
    decoding: Decoding,
    field: str,
) -> tuple[list[Answer], int]:
    """One answer for each item, in the items' order, on every rank, and how many were really generated in this stage.

    `model` is a role of the manifest or a folder with a checkpoint (the student's). `fingerprint` says which model it
    is. Raises BadDataError when every answer is empty: such a model has learned nothing, or its chat template does not
    fit.
    """
    requests = [request_of(item, seed=ctx.spec.seed) for item in items]
    replies, made = generate_counted(
        ctx, model=model, role=role, fingerprint=fingerprint, requests=requests, decoding=decoding, field=field
    )
    answers = [
        Answer(item=item.id, model=fingerprint, text=replies[item.id].text, finish=replies[item.id].finish)
        for item in items
    ]
    if answers and not any(answer.text for answer in answers):
        raise BadDataError(
            f"{field}: all {len(answers)} answers of the {role} are empty; "
            "check that the checkpoint is trained and that its chat template is the one it was trained with"
        )
    return answers, made


def request_of(item: Item, *, seed: int) -> Request:
    """The item as a prompt. Its sampling seed comes from image and turns, not from the id, so that the same question
    asked twice has one answer."""
    turns = [text for turn in item.turns for text in (turn.role, turn.text)]
    return Request(
        key=item.id, turns=item.turns, image=item.image, seed=derive(seed, "answer", item.image or "", *turns)
    )
