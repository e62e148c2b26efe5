"""The digits example's world: splits that share no handwriting, right answers, exact mixes, a closed vocabulary, the
same bytes again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


def load(name: str) -> ModuleType:
    """Import a module of the example, which is a folder of scripts and not a package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


world = load("world")
inputs = load("inputs")
prepare = load("prepare")

CANVAS = (7, None, 2, 5)
PAIRS = (3, 4, 9, 9)


def question(text: str) -> object:
    """The instruction with this text."""
    (found,) = [q for skill in world.SKILLS for q in world.QUESTIONS[skill] if q.text == text]
    return found


@pytest.mark.parametrize(
    ("cells", "text", "answer"),
    [
        (CANVAS, "what digit is in the top left ?", "it is seven ."),
        (CANVAS, "name the digit in the bottom right .", "it is five ."),
        (CANVAS, "which digit do you see in the top right ?", "it is empty ."),
        (CANVAS, "how many digits are there ?", "there are three digits ."),
        ((None, None, 0, None), "count the digits .", "there is one digit ."),
        (CANVAS, "list the digits .", "seven , two and five ."),
        ((None, None, 0, None), "name all digits in order .", "zero ."),
        (PAIRS, "which digits do you see ?", "three , four , nine and nine ."),
        ((1, None, None, 6), "list the digits .", "one and six ."),
        (CANVAS, "is the top left digit even or odd ?", "seven is odd ."),
        ((0, 1, 1, 1), "is the top left digit even or odd ?", "zero is even ."),
        (CANVAS, "tell me whether the top right digit is even or odd .", "it is empty ."),
        (CANVAS, "which digit is the largest ?", "the largest is seven ."),
        (CANVAS, "name the smallest digit .", "the smallest is two ."),
        ((None, 0, None, None), "what is the smallest digit ?", "the smallest is zero ."),
        (CANVAS, "compare the digits of the left column .", "seven and two , seven is larger ."),
        (PAIRS, "which digit of the right column is larger ?", "four and nine , nine is larger ."),
        (PAIRS, "compare the digits of the bottom row .", "nine and nine , they are equal ."),
        (CANVAS, "which digit of the top row is larger ?", "i cannot compare them ."),
        (CANVAS, "add the digits of the bottom row .", "two plus five is seven ."),
        (PAIRS, "what is the sum of the bottom row ?", "nine plus nine is eighteen ."),
        (CANVAS, "what is the sum of the right column ?", "i cannot add them ."),
    ],
)
def test_answers_on_hand_made_canvases(cells: tuple[int | None, ...], text: str, answer: str) -> None:
    assert world.answer(question(text), cells) == answer


def test_a_caption_tells_every_cell() -> None:
    assert world.caption(CANVAS) == "top row seven and empty , bottom row two and five ."
    assert world.cell_words(CANVAS) == ["seven", "empty", "two", "five"]


def test_an_unknown_skill_is_refused() -> None:
    with pytest.raises(ValueError, match="'colour' is not a skill"):
        world.answer(world.Question("colour", "which colour is it ?"), CANVAS)


def test_splits_are_disjoint_and_take_every_scan() -> None:
    splits = world.split_indices()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1000, "dev": 300, "test": 497}
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(1797))


def test_splits_share_no_handwriting() -> None:
    scans = world.load_scans()
    seen = {split: {scan.tobytes() for scan in held.pixels} for split, held in scans.items()}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["dev"]
    assert not seen["dev"] & seen["test"]
    for held in scans.values():
        assert all(len(rows) >= 15 for rows in held.by_digit), "every split has every digit"


def test_mixes_sum_to_one_over_the_eight_skills() -> None:
    assert list(world.SEED_MIX.values()) == [0.40, 0.25, 0.15, 0.08, 0.05, 0.03, 0.02, 0.02]
    assert sum(world.SEED_MIX.values()) == pytest.approx(1)
    assert sum(world.EVEN_MIX.values()) == pytest.approx(1)
    assert set(world.SEED_MIX) == set(world.EVEN_MIX) == set(world.PHRASINGS) == set(world.QUESTIONS)
    assert all(2 <= len(phrasings) <= 3 for phrasings in world.PHRASINGS.values())


def test_drawn_questions_follow_the_mix() -> None:
    rng = np.random.default_rng(0)
    drawn = Counter(world.draw_question(rng, world.SEED_MIX).skill for _ in range(4000))
    for skill, share in world.SEED_MIX.items():
        assert drawn[skill] / 4000 == pytest.approx(share, abs=0.025)


@pytest.mark.parametrize("total", [1, 7, 800, 801])
def test_quotas_are_exact(total: int) -> None:
    counts = inputs.quotas(total, world.SEED_MIX)
    assert sum(counts.values()) == total
    assert all(abs(counts[skill] - total * share) < 1 for skill, share in world.SEED_MIX.items())


def test_every_word_is_in_the_vocabulary() -> None:
    known = set(world.vocabulary())
    assert len(known) == len(world.vocabulary())
    rng = np.random.default_rng(1)
    for _ in range(200):
        cells = world.draw_cells(rng)
        texts = [world.caption(cells), *world.cell_words(cells), *world.CAPTION_PROMPTS, *world.ROLES]
        for skill in world.SKILLS:
            for asked in world.QUESTIONS[skill]:
                texts += [asked.text, world.answer(asked, cells)]
        assert {word for text in texts for word in text.split()} <= known


def test_a_row_with_an_unknown_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl, row a: answer has words outside the vocabulary: twenty"):
        inputs.write_rows(
            tmp_path / "rows.jsonl", [{"id": "a", "instruction": "count the digits .", "answer": "twenty"}]
        )
    assert not (tmp_path / "rows.jsonl").exists()


def test_pictures_show_what_the_cells_say() -> None:
    scans = world.load_scans()["dev"]
    picture = world.draw_canvas(np.random.default_rng(0), scans, CANVAS, shift=False)
    assert picture.shape == (32, 32)
    assert picture.dtype == np.uint8
    assert not picture[:16, 16:].any(), "an empty cell is paper"
    for place, digit in enumerate(CANVAS):
        top, left = 16 * (place // 2), 16 * (place % 2)
        small = picture[top : top + 16 : 2, left : left + 16 : 2]
        if digit is not None:
            known = [np.round(scans.pixels[row] * (255 / 16)).astype(np.uint8) for row in scans.by_digit[digit]]
            assert any((scan == small).all() for scan in known)


def test_a_shift_moves_by_one_pixel_at_most_and_stays_in_its_cell() -> None:
    scans = world.load_scans()["train"]
    rng = np.random.default_rng(0)
    for _ in range(50):
        picture = world.draw_canvas(rng, scans, (8, None, None, None), shift=True)
        assert picture[:16, :16].any()
        assert not picture[16:].any()
        assert not picture[:, 16:].any()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A world of a few pictures."""
    numbers = {"BANK_CANVASES": 30, "BANK_PER_CANVAS": 4, "EVEN": 40, "SEED": 20, "PAIRS": 10, "HELD_OUT": 16}
    for name, number in numbers.items():
        monkeypatch.setattr(inputs, f"NUM_{name}", number)


def build(folder: Path, seed: int) -> dict[str, str]:
    """Build the inputs and return each file's digest."""
    folder.mkdir()
    inputs.build(folder, seed=seed, progress=lambda *_: None)
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.usefixtures("small")
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = build(tmp_path / "a", 3), build(tmp_path / "b", 3), build(tmp_path / "c", 4)
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name.endswith(".jsonl"))


@pytest.mark.usefixtures("small")
def test_rows_are_what_the_manifest_reads(tmp_path: Path) -> None:
    build(tmp_path / "a", 0)
    rows = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "a").glob("*.jsonl")
    }
    assert {name: len(held) for name, held in rows.items()} == {
        "pairs": 10,
        "seed": 20,
        "bank": 120,
        "bank-even": 40,
        **dict.fromkeys(("dev-balanced", "dev-natural", "eval-balanced", "eval-natural"), 16),
    }
    for name, held in rows.items():
        assert len({row["id"] for row in held}) == len(held)
        assert all((tmp_path / "a" / "images" / row["image"]).is_file() for row in held)
        if name == "pairs":
            assert set(held[0]) == {"id", "image", "caption"}
            continue
        assert all(set(row) == {"id", "image", "instruction", "group", "answer"} for row in held)
        assert len({(row["image"], row["instruction"]) for row in held}) == len(held)
    assert Counter(row["group"] for row in rows["eval-balanced"]) == dict.fromkeys(world.SKILLS, 2)
    pictures = {name: {row["image"] for row in held} for name, held in rows.items()}
    learned = pictures["seed"] | pictures["bank"] | pictures["bank-even"] | pictures["pairs"]
    assert not learned & (
        pictures["eval-balanced"] | pictures["eval-natural"] | pictures["dev-balanced"] | pictures["dev-natural"]
    )
    assert not pictures["seed"] & pictures["bank"]
    ids = [row["id"] for held in rows.values() for row in held]
    assert len(set(ids)) == len(ids)


def test_prepare_makes_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for places in prepare.PLACES.values():
        for place in places:
            (tmp_path / place).mkdir(parents=True)
    prepare.write_ledger(tmp_path, dict.fromkeys(prepare.PLACES, prepare.fingerprint(0)))
    monkeypatch.setattr(prepare, "ProcessPoolExecutor", None)
    prepare.prepare(tmp_path, seed=0, workers=1)
    with pytest.raises(TypeError):
        prepare.prepare(tmp_path, seed=1, workers=1)
    assert prepare.read_ledger(tmp_path) == {}, "parts of another seed are not taken for this one's"


def test_a_part_is_taken_over_whole(tmp_path: Path) -> None:
    built = tmp_path / ".building-student"
    for place in prepare.PLACES["student"]:
        (built / place).mkdir(parents=True)
        (built / place / "config.json").write_text("new")
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "old").write_text("old")
    prepare.take_over("student", built, tmp_path)
    for place in prepare.PLACES["student"]:
        assert [path.name for path in (tmp_path / place).iterdir()] == ["config.json"]
    assert not built.exists()
