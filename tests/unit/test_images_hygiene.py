"""Images: opened safely, recognised when re-encoded; evaluation data kept out of the pools (method section 12, row 29)."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comd_trainer.data.hygiene import EvaluationData, remove_overlap
from comd_trainer.data.images import BadImageError, ImageFacts, Images, look_at, look_at_all, thumb_vectors
from comd_trainer.data.rows import Item, Turn


def photo(seed: int, side: int = 96) -> Image.Image:
    """Smooth enough to be encoded as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def save(folder: Path, name: str, image: Image.Image, **options: object) -> str:
    image.save(folder / name, **options)  # type: ignore[arg-type]
    return name


def item(id: str, image: str | None = None, text: str = "What is this?") -> Item:
    return Item(id=id, image=image, turns=(Turn(role="user", text=text),), origin="seed")


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA", "I;16", "CMYK"])
def test_every_mode_opens_as_rgb(mode: str, tmp_path: Path) -> None:
    name = "x.tiff" if mode == "CMYK" else "x.png"
    save(tmp_path, name, Image.new(mode, (5, 4)))
    opened = Images(tmp_path).open(name)
    assert (opened.mode, opened.size) == ("RGB", (5, 4))


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    save(tmp_path, "x.png", Image.new("RGBA", (2, 2), (200, 0, 0, 0)))
    assert Images(tmp_path).open("x.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_turned_camera_s_pictures_are_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # Orientation: a quarter turn clockwise.
    save(tmp_path, "x.jpg", Image.new("RGB", (8, 4)), exif=turned)
    assert Images(tmp_path).open("x.jpg").size == (4, 8)


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png", "", "missing.png", "a" * 5000, "a\0b"])
def test_names_that_lead_nowhere_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    save(tmp_path, "x.png", photo(0))
    with pytest.raises(BadImageError, match=r"data\.images"):
        Images(tmp_path / "images").open(name)


@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_damaged_files_are_named_and_noted(keep: float, tmp_path: Path) -> None:
    for name in ("x.png", "x.jpg"):
        save(tmp_path, name, photo(1))
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
        with pytest.raises(BadImageError, match=f"'{name}' does not decode"):
            Images(tmp_path).open(name)
        facts = look_at(Images(tmp_path), name)
        assert facts.error is not None
        assert "does not decode" in facts.error
        assert facts.sha256 is not None
        assert facts.thumb is None


@pytest.mark.parametrize("format", ["AVIF", "GIF", "JPEG", "PNG", "WEBP"])
def test_whatever_is_wrong_with_a_file_it_is_the_files_fault(format: str, tmp_path: Path) -> None:
    """Decoders raise what they like (AVIF's a RuntimeError); nothing of it may look like a crash of ours."""
    whole = save(tmp_path, f"whole.{format.lower()}", photo(0, 24), format=format)
    data = (tmp_path / whole).read_bytes()
    generator, refused = np.random.default_rng(20231114), 0
    for number in range(40):
        damaged = bytearray(data)
        for place in generator.integers(0, len(data), 6):
            damaged[int(place)] = int(generator.integers(0, 256))
        (tmp_path / f"{number}.x").write_bytes(damaged)
        facts = look_at(Images(tmp_path), f"{number}.x")
        try:
            Images(tmp_path).open(f"{number}.x")
        except BadImageError:
            refused += 1
        assert facts.sha256 is not None
        assert (facts.error is None) == (facts.thumb is not None)
    assert refused


def test_re_encoded_and_scaled_copies_are_recognised(tmp_path: Path) -> None:
    originals = [save(tmp_path, f"{seed}.png", photo(seed)) for seed in range(40)]
    copies = [
        save(tmp_path, "copy.jpg", photo(3), quality=60),
        save(tmp_path, "small.png", photo(3).resize((48, 48), Image.Resampling.BICUBIC)),
        save(tmp_path, "large.jpg", photo(3).resize((300, 300), Image.Resampling.BICUBIC), quality=85),
        save(tmp_path, "same.png", photo(3)),
    ]
    facts = look_at_all(Images(tmp_path), [*originals, *copies])
    evaluation = EvaluationData([item(f"e{name}", name) for name in copies], facts)
    shown = evaluation.images({name: facts[name] for name in originals})
    assert set(shown) == {"3.png"}


def test_plain_pictures_resemble_nothing(tmp_path: Path) -> None:
    save(tmp_path, "black.png", Image.new("RGB", (9, 9)))
    save(tmp_path, "white.png", Image.new("RGB", (9, 9), "white"))
    facts = look_at_all(Images(tmp_path), ["black.png", "white.png"])
    evaluation = EvaluationData([item("e", "white.png")], facts)
    assert evaluation.images(facts) == {"white.png": "e"}
    assert thumb_vectors([]).shape == (0, 256)


LONG = "Explain in your own words what the tall man with the red umbrella is about to do next"


def facts_for(*names: str) -> dict[str, ImageFacts]:
    return {name: ImageFacts(sha256=name) for name in names}


@pytest.mark.parametrize(
    ("candidate", "kind"),
    [
        (item("x", "held-out.png", "Something else?"), "image"),
        (item("x", "other.png", "What is this?"), None),  # a template, on another image
        (item("x", "other.png", f"Please: {LONG.lower()}!"), "text"),
        (item("x", "other.png", " ".join(LONG.split()[:12])), None),
        (item("x", None, "how  many Moons has mars?"), "text"),
        (item("x", None, "How many moons has Jupiter?"), None),
        (item("x", "other.png", "How many moons has Mars?"), None),
    ],
)
def test_what_counts_as_overlap(candidate: Item, kind: str | None) -> None:
    held_out = [
        item("e1", "held-out.png"),
        item("e2", "held-out.png", LONG),
        item("e3", None, "How many moons has Mars?"),
    ]
    facts = facts_for("held-out.png", "other.png")
    cleaned = remove_overlap([candidate], facts=facts, evaluation=EvaluationData(held_out, facts))
    if kind is None:
        assert cleaned.items == [candidate]
        assert cleaned.report() == {"removed": 0}
    else:
        assert cleaned.items == []
        assert cleaned.removed["x"].kind == kind
        assert cleaned.report()["removed"] == cleaned.report()[kind]["removed"] == 1


def test_templates_of_the_evaluation_sets_are_no_overlap() -> None:
    held_out = [item(f"e{number}", f"{number}.png", f"{LONG} {number}") for number in range(4)]
    facts = facts_for(*(f"{number}.png" for number in range(4)), "other.png")
    cleaned = remove_overlap([item("x", "other.png", LONG)], facts=facts, evaluation=EvaluationData(held_out, facts))
    assert len(cleaned.items) == 1
