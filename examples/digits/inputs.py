"""The example's data as the manifest reads it: pictures, pre-training pairs, seed instructions, the unlabelled bank,
held-out questions.

Pure but for writing: the same seed gives the same bytes. Rows carry `answer`, the truth, which only evaluation and
the assessor `Reference` look at; what the student learns in the rounds is what the teacher says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import world
from PIL import Image

NUM_BANK_CANVASES = 8000
NUM_BANK_PER_CANVAS = 4
"""32,000 instructions: about 640 of each of the rarest skills, so that three rounds of retrieval do not run out of
them."""
NUM_EVEN = 12000
NUM_SEED = 800
NUM_PAIRS = 4800
NUM_HELD_OUT = 800
IMAGES = "images"

Row = dict[str, str]
Progress = Callable[[int, int], None]


def quotas(total: int, mix: Mapping[str, float]) -> dict[str, int]:
    """`total` split by the shares of `mix`, exactly: largest remainders get what rounding leaves."""
    exact = {skill: total * share for skill, share in mix.items()}
    counts = {skill: int(value) for skill, value in exact.items()}
    by_remainder = sorted(exact, key=lambda skill: counts[skill] - exact[skill])
    for skill in by_remainder[: total - sum(counts.values())]:
        counts[skill] += 1
    return counts


def instruction_row(name: str, number: int, image: str, question: world.Question, cells: world.Cells) -> Row:
    """One (picture, instruction) pair with its skill and its true answer."""
    return {
        "id": f"{name}-{number:05d}",
        "image": image,
        "instruction": question.text,
        "group": question.skill,
        "answer": world.answer(question, cells),
    }


class Canvases:
    """Pictures of one kind, with what they hold; `names[i]` is the path of picture i below `images/`."""

    def __init__(self, rng: np.random.Generator, scans: world.Scans, folder: str, number: int, *, shift: bool) -> None:
        self.cells = [world.draw_cells(rng) for _ in range(number)]
        self.pictures = [world.draw_canvas(rng, scans, cells, shift=shift) for cells in self.cells]
        self.names = [f"{folder}/{index:05d}.png" for index in range(number)]

    def save(self, folder: Path, told: Callable[[], None]) -> None:
        """Write every picture as a grey PNG."""
        for name, picture in zip(self.names, self.pictures, strict=True):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
            told()


def one_each(rng: np.random.Generator, name: str, canvases: Canvases, mix: Mapping[str, float]) -> list[Row]:
    """One instruction on each picture, skills by exact quota, in random order."""
    counts = quotas(len(canvases.cells), mix)
    skills = rng.permutation([skill for skill, count in counts.items() for _ in range(count)])
    asked = [world.draw_of_skill(rng, str(skill)) for skill in skills]
    return [
        instruction_row(name, i, canvases.names[i], question, canvases.cells[i]) for i, question in enumerate(asked)
    ]


def bank_rows(
    rng: np.random.Generator, canvases: Canvases, mix: Mapping[str, float], *, name: str, number: int
) -> list[Row]:
    """`number` instructions over all pictures in turn; none stands twice on the same picture."""
    rows: list[Row] = []
    asked: list[set[str]] = [set() for _ in canvases.cells]
    while len(rows) < number:
        at = len(rows) % len(canvases.cells)
        question = world.draw_question(rng, mix)
        if question.text in asked[at]:
            continue
        asked[at].add(question.text)
        rows.append(instruction_row(name, len(rows), canvases.names[at], question, canvases.cells[at]))
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """JSON Lines. A word that no model of the example knows is an error here, not an `<unk>` in some later stage."""
    known = set(world.vocabulary())
    lines = []
    for row in rows:
        for field in ("instruction", "answer", "caption"):
            unknown = [word for word in row.get(field, "").split() if word not in known]
            if unknown:
                raise ValueError(
                    f"{path.name}, row {row['id']}: {field} has words outside the vocabulary: {' '.join(unknown)}"
                )
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def build(folder: Path, *, seed: int, progress: Progress) -> None:
    """Write `images/` and every JSON Lines file of the example into `folder`."""
    scans = world.load_scans()
    rng = np.random.default_rng([seed, 100])
    bank = Canvases(rng, scans["train"], "bank", NUM_BANK_CANVASES, shift=True)
    seeds = Canvases(rng, scans["train"], "seed", NUM_SEED, shift=True)
    dev = Canvases(rng, scans["dev"], "dev", NUM_HELD_OUT, shift=False)
    test = Canvases(rng, scans["test"], "test", NUM_HELD_OUT, shift=False)
    files: dict[str, list[Row]] = {
        "pairs": [
            {"id": f"pair-{i:05d}", "image": bank.names[i], "caption": world.caption(bank.cells[i])}
            for i in range(NUM_PAIRS)
        ],
        "seed": one_each(rng, "seed", seeds, world.SEED_MIX),
        "bank": bank_rows(rng, bank, world.SEED_MIX, name="bank", number=NUM_BANK_CANVASES * NUM_BANK_PER_CANVAS),
        "bank-even": bank_rows(rng, bank, world.EVEN_MIX, name="even", number=NUM_EVEN),
        "dev-balanced": one_each(rng, "dev-balanced", dev, world.EVEN_MIX),
        "dev-natural": one_each(rng, "dev-natural", dev, world.SEED_MIX),
        "eval-balanced": one_each(rng, "eval-balanced", test, world.EVEN_MIX),
        "eval-natural": one_each(rng, "eval-natural", test, world.SEED_MIX),
    }
    total = sum(len(canvases.cells) for canvases in (bank, seeds, dev, test))
    saved = 0

    def told() -> None:
        nonlocal saved
        saved += 1
        progress(saved, total)

    for canvases in (bank, seeds, dev, test):
        canvases.save(folder / IMAGES, told)
    for name, rows in files.items():
        write_rows(folder / f"{name}.jsonl", rows)
