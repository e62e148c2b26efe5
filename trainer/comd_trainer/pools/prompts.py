"""What the prompted augmentor is asked: one item in, one new instruction out (method section 12, "Prompt contents")."""

from typing import Literal

from comd_trainer.data.annotations import Annotation
from comd_trainer.data.rows import Item, Turn

_TASK = {
    "hard": (
        "Write one new instruction{about} that needs the same kind of skill as the example below, "
        "in the same subject area, and is about as long and about as difficult."
    ),
    "easy": (
        "Write one new instruction{about} in the same subject area as the example below, "
        "but from an angle that people ask about less often. It should be about as long and no more difficult."
    ),
}
_RULES = (
    "It must be answerable with confidence from {evidence}. "
    "Do not reword the example: ask for something else. "
    "Do not mention the example or these directions. "
    "Reply with the text of the new instruction and nothing else."
)


def augment_turns(
    parent: Item, *, branch: Literal["hard", "easy"], has_image: bool, annotation: Annotation | None
) -> tuple[Turn, ...]:
    """The prompt, one user's turn. `annotation` is that of the image which the new instruction is about, where the
    model is to read it in place of the image."""
    parts = [_TASK[branch].format(about=" about this image" if has_image else "")]
    if annotation is not None:
        parts.append("What the image shows:\n" + annotation.as_text())
    if len(parent.turns) > 1:
        history = "\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in parent.turns[:-1])
        parts.append("The example followed this conversation; yours must stand alone.\n" + history)
    parts.append(f"Example:\n{parent.instruction}")
    parts.append(
        _RULES.format(evidence="what the image shows and common knowledge" if has_image else "common knowledge")
    )
    return (Turn(role="user", text="\n\n".join(parts)),)


def answerable_turns(text: str, *, has_image: bool, annotation: Annotation | None) -> tuple[Turn, ...]:
    """Asks whether the image supports a question (method section 12, row 25)."""
    evidence = "what the image shows and common knowledge" if has_image else "common knowledge"
    parts = [f"Can the following instruction be carried out with confidence from {evidence}?"]
    if annotation is not None:
        parts.append("What the image shows:\n" + annotation.as_text())
    parts.append(f"Instruction:\n{text}")
    parts.append("Reply with one word: yes or no.")
    return (Turn(role="user", text="\n\n".join(parts)),)


def says_yes(reply: str) -> bool:
    """Whether the first word is yes. Anything else, also what can't be read, is no: an instruction is cheaper than a
    wrong target."""
    found = reply.strip().lower().lstrip("\"'*`").split()
    return bool(found) and found[0].rstrip("\"'*`.,!:;") == "yes"
