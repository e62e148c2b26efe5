"""What the training phases learn from, as rows of one kind."""

from collections.abc import Sequence

from comd_trainer.data.rows import Answer, Item, Pair, Turn
from comd_trainer.data.seeds import derive
from comd_trainer.engine.batches import Example


def from_pairs(pairs: Sequence[Pair], *, instructions: Sequence[str], seed: int) -> list[Example]:
    """Captions as answers: to one of `instructions`, drawn by the pair's id, or to the image alone when there are none
    (LLaVA's "plain", method section 3)."""
    examples = []
    for pair in pairs:
        turns: tuple[Turn, ...] = ()
        if instructions:
            drawn = instructions[derive(seed, "instruction", pair.id) % len(instructions)]
            turns = (Turn(role="user", text=drawn),)
        examples.append(Example(id=pair.id, image=pair.image, turns=turns, answer=pair.caption))
    return examples


def from_answers(items: Sequence[Item], answers: Sequence[Answer]) -> list[Example]:
    """The teacher's answers to the train pool. Both lists are in the same order."""
    assert [item.id for item in items] == [answer.item for answer in answers], (
        "an answer for each item, in the items' order"
    )
    return [
        Example(id=item.id, image=item.image, turns=item.turns, answer=answer.text, complete=answer.finish == "stop")
        for item, answer in zip(items, answers, strict=True)
    ]
