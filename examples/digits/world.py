"""A tiny world with real handwriting: what is on a canvas, what may be asked about it, and the right answer.

Pure: no torch, no files. A *canvas* is a 32x32 grey picture of 2x2 cells, each of which holds one real scan of a
handwritten digit (scikit-learn ships 1,797 of them, 8x8 pixels) or nothing. Eight *skills* ask about it in plain
English, and every question has exactly one answer on every canvas, so any question may be paired with any picture.

The scans are split three ways, so that no picture of one split shares handwriting with another: `train` (what teacher
and student learn from), `dev` (what the example's settings were chosen on), `test` (what the published figures are
measured on).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "dev", "test"]
Cells = tuple[int | None, int | None, int | None, int | None]
"""What the four cells hold, in reading order: top left, top right, bottom left, bottom right; None is an empty cell."""

CELL = 16
"""Side of a cell in pixels; also the patch size of every vision tower here, so that one image token is one cell."""
SIDE = 2 * CELL
SPLIT_SIZES: Mapping[Split, int] = {"train": 1000, "dev": 300, "test": 497}
SPLIT_SEED = 2311
"""Fixed, so that the test handwriting is the same for every `--seed`."""
EMPTY_SHARE = 0.2

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)
POSITIONS: Mapping[str, int] = {"top left": 0, "top right": 1, "bottom left": 2, "bottom right": 3}
LINES: Mapping[str, tuple[int, int]] = {
    "top row": (0, 1),
    "bottom row": (2, 3),
    "left column": (0, 2),
    "right column": (1, 3),
}

SEED_MIX: Mapping[str, float] = {
    "read": 0.40,
    "count": 0.25,
    "list": 0.15,
    "parity": 0.08,
    "largest": 0.05,
    "smallest": 0.03,
    "compare": 0.02,
    "sum": 0.02,
}
"""Share of each skill among the seed instructions: what people happened to ask. Unequal on purpose."""
SKILLS = tuple(SEED_MIX)
EVEN_MIX: Mapping[str, float] = {skill: 1 / len(SKILLS) for skill in SKILLS}

PHRASINGS: Mapping[str, tuple[str, ...]] = {
    "read": (
        "what digit is in the POSITION ?",
        "which digit do you see in the POSITION ?",
        "name the digit in the POSITION .",
    ),
    "count": ("how many digits are there ?", "count the digits .", "how many cells hold a digit ?"),
    "list": ("list the digits .", "name all digits in order .", "which digits do you see ?"),
    "parity": ("is the POSITION digit even or odd ?", "tell me whether the POSITION digit is even or odd ."),
    "largest": ("which digit is the largest ?", "what is the largest digit ?", "name the largest digit ."),
    "smallest": ("which digit is the smallest ?", "what is the smallest digit ?", "name the smallest digit ."),
    "compare": ("which digit of the LINE is larger ?", "compare the digits of the LINE ."),
    "sum": ("what is the sum of the LINE ?", "add the digits of the LINE ."),
}
CAPTION_PROMPTS = ("describe the picture .", "what does the picture show ?")
"""What stands before a caption in pre-training; also among the texts that the language model has read."""
ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Question:
    """One instruction: its skill, its words, and the cells that it is about (none for questions about the whole
    canvas)."""

    skill: str
    text: str
    cells: tuple[int, ...] = ()


def questions(skill: str) -> tuple[Question, ...]:
    """Every instruction of one skill: each phrasing with each position or line."""
    places: Mapping[str, tuple[int, ...]] = {**{name: (cell,) for name, cell in POSITIONS.items()}, **LINES}
    found: list[Question] = []
    for phrasing in PHRASINGS[skill]:
        slot = next((word for word in ("POSITION", "LINE") if word in phrasing), None)
        if slot is None:
            found.append(Question(skill, phrasing))
            continue
        names = POSITIONS if slot == "POSITION" else LINES
        found += [Question(skill, phrasing.replace(slot, name), places[name]) for name in names]
    return tuple(found)


QUESTIONS: Mapping[str, tuple[Question, ...]] = {skill: questions(skill) for skill in SKILLS}


def _joined(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a , b and c`: punctuation stands alone, because the tokenizer splits on spaces only."""
    return words[0] if len(words) == 1 else " , ".join(words[:-1]) + " and " + words[-1]


def answer(question: Question, cells: Cells) -> str:
    """The one right answer, in full; parts come before verdicts, so that a small model can work them out left to
    right."""
    digits = [digit for digit in cells if digit is not None]
    chosen = [cells[place] for place in question.cells]
    if question.skill == "read":
        return "it is empty ." if chosen[0] is None else f"it is {NUMBERS[chosen[0]]} ."
    if question.skill == "count":
        return "there is one digit ." if len(digits) == 1 else f"there are {NUMBERS[len(digits)]} digits ."
    if question.skill == "list":
        return _joined([NUMBERS[digit] for digit in digits]) + " ."
    if question.skill == "parity":
        return (
            "it is empty ." if chosen[0] is None else f"{NUMBERS[chosen[0]]} is {'odd' if chosen[0] % 2 else 'even'} ."
        )
    if question.skill == "largest":
        return f"the largest is {NUMBERS[max(digits)]} ."
    if question.skill == "smallest":
        return f"the smallest is {NUMBERS[min(digits)]} ."
    if question.skill not in ("compare", "sum"):
        raise ValueError(f"{question.skill!r} is not a skill of this world; the skills are {', '.join(SKILLS)}")
    first, second = chosen
    if first is None or second is None:
        return f"i cannot {'compare' if question.skill == 'compare' else 'add'} them ."
    if question.skill == "sum":
        return f"{NUMBERS[first]} plus {NUMBERS[second]} is {NUMBERS[first + second]} ."
    pair = f"{NUMBERS[first]} and {NUMBERS[second]}"
    return f"{pair} , they are equal ." if first == second else f"{pair} , {NUMBERS[max(first, second)]} is larger ."


def cell_words(cells: Cells) -> list[str]:
    """One word a cell: a number or `empty`. Text worlds show these four words where the picture's four tokens would
    stand."""
    return ["empty" if digit is None else NUMBERS[digit] for digit in cells]


def caption(cells: Cells) -> str:
    """The description that the picture is pre-trained with: every cell, row by row."""
    words = cell_words(cells)
    return f"top row {words[0]} and {words[1]} , bottom row {words[2]} and {words[3]} ."


def vocabulary() -> tuple[str, ...]:
    """Every word that can occur in a prompt, a caption or an answer, in a fixed order."""
    texts = [question.text for skill in SKILLS for question in QUESTIONS[skill]]
    texts += [*NUMBERS, *CAPTION_PROMPTS, *ROLES, "empty it is . , and even odd the largest smallest"]
    texts += ["there are digits one digit is i cannot compare add them plus they equal larger top bottom row"]
    return tuple(dict.fromkeys(word for text in texts for word in text.split()))


def draw_question(rng: np.random.Generator, mix: Mapping[str, float]) -> Question:
    """A random instruction: the skill by its share, then any of the skill's instructions."""
    skill = SKILLS[int(rng.choice(len(SKILLS), p=[mix[name] for name in SKILLS]))]
    return draw_of_skill(rng, skill)


def draw_of_skill(rng: np.random.Generator, skill: str) -> Question:
    """Any instruction of one skill."""
    return QUESTIONS[skill][int(rng.integers(len(QUESTIONS[skill])))]


def draw_cells(rng: np.random.Generator) -> Cells:
    """What a random canvas holds: digits 0-9 evenly, a cell empty with probability 0.2, never all four empty."""
    while True:
        digits, empty = rng.integers(10, size=4), rng.random(4) < EMPTY_SHARE
        if not empty.all():
            a, b, c, d = (None if gone else int(digit) for digit, gone in zip(digits, empty, strict=True))
            return (a, b, c, d)


@dataclass(frozen=True)
class Scans:
    """Scans of one split. `pixels` is (scans, 8, 8) in 0..16; `by_digit[d]` holds the rows of `pixels` that show digit
    d."""

    pixels: NDArray[np.float64]
    by_digit: tuple[NDArray[np.int64], ...]


def split_indices() -> dict[Split, NDArray[np.int64]]:
    """Rows of scikit-learn's digits in each split; the same for every seed."""
    order = np.random.default_rng(SPLIT_SEED).permutation(sum(SPLIT_SIZES.values()))
    found: dict[Split, NDArray[np.int64]] = {}
    start = 0
    for split, size in SPLIT_SIZES.items():
        found[split] = np.sort(order[start : start + size])
        start += size
    return found


def load_scans() -> dict[Split, Scans]:
    """The real scans, split three ways. Needs scikit-learn; reads nothing from the network."""
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    bundle = load_digits()
    scans: dict[Split, Scans] = {}
    for split, rows in split_indices().items():
        labels = bundle.target[rows]
        scans[split] = Scans(bundle.images[rows], tuple(np.flatnonzero(labels == digit) for digit in range(10)))
    return scans


def draw_canvas(rng: np.random.Generator, scans: Scans, cells: Cells, *, shift: bool) -> NDArray[np.uint8]:
    """Paint a canvas: (32, 32) grey, 0 is paper. Each scan is doubled to 16x16; `shift` moves it by -1, 0 or 1 pixel
    each way."""
    canvas = np.zeros((SIDE, SIDE))
    for place, digit in enumerate(cells):
        if digit is None:
            continue
        scan = scans.pixels[rng.choice(scans.by_digit[digit])].repeat(2, axis=0).repeat(2, axis=1)
        if shift:
            down, right = (int(step) for step in rng.integers(-1, 2, size=2))
            scan = np.pad(scan, 1)[1 - down : 1 - down + CELL, 1 - right : 1 - right + CELL]
        top, left = CELL * (place // 2), CELL * (place % 2)
        canvas[top : top + CELL, left : left + CELL] = scan
    return np.round(canvas * (255 / 16)).astype(np.uint8)
