"""What the prompted augmentor is asked: one item in, one new instruction out (method section 12, "Prompt contents")."""

from typing import Literal

from comd_trainer.data.annotations import Annotation
from comd_trainer.data.rows import Item, Turn

_TASK = {
    "hard": (
        "Write one new instruction about this image that needs the same kind of skill as the example below, "
        "in the same subject area, and is about as long and about as difficult."
    ),
    "easy": (
        "Write one new instruction about this image in the same subject area as the example below, "
        "but from an angle that people ask about less often. It should be about as long and no more difficult."
    ),
}
_RULES = (
    "It must be answerable with confidence from {evidence} and common knowledge. "
    "Do not reword the example: ask for something else. "
    "Do not mention the example or these directions. "
    "Reply with the text of the new instruction and nothing else."
)


def augment_turns(parent: Item, *, branch: Literal["hard", "easy"], annotation: Annotation | None) -> tuple[Turn, ...]:
    """The prompt, one user's turn. `annotation` is that of the image which the new instruction is about, where the model is to read
    it in place of the image; a text-only parent has neither."""
    task = _TASK[branch]
    evidence = "the image"
    if annotation is None and parent.image is None:
        task, evidence = task.replace(" about this image", ""), "the text"
    parts = [task]
    if annotation is not None:
        parts.append("What the image shows:\n" + annotation.as_text())
    if len(parent.turns) > 1:
        history = "\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in parent.turns[:-1])
        parts.append("The example followed this conversation; yours must stand alone.\n" + history)
    parts.append(f"Example:\n{parent.instruction}")
    parts.append(_RULES.format(evidence=evidence))
    return (Turn(role="user", text="\n\n".join(parts)),)


def answerable_turns(text: str, *, annotation: Annotation | None) -> tuple[Turn, ...]:
    """Asks whether the image supports a question (method section 12, row 25)."""
    parts = ["Can the following instruction be carried out with confidence from what the image shows and common knowledge?"]
    if annotation is not None:
        parts.append("What the image shows:\n" + annotation.as_text())
    parts.append(f"Instruction:\n{text}")
    parts.append("Reply with one word: yes or no.")
    return (Turn(role="user", text="\n\n".join(parts)),)


def says_yes(reply: str) -> bool:
    """Whether the first word is yes. Anything else, also what can't be read, is no: an instruction is cheaper than a wrong target."""
    found = reply.strip().lower().lstrip("\"'*`").split()
    return bool(found) and found[0].rstrip("\"'*`.,!:;") == "yes"
