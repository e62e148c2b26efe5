"""Answers of a local model: the same alone, in a batch and in any order, and those that a plain transformers session
gives."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comd_api.exit_codes import BadDataError, TryAgainError
from comd_api.recipe import Decoding
from comd_trainer.data.images import Images
from comd_trainer.generation.base import Reply, Request
from comd_trainer.generation.encoding import PixelCache, PromptEncoder
from comd_trainer.generation.transformers import TransformersGenerator
from comd_trainer.models.prompts import encode_prompt
from tests.tiny import ask, load_tiny, save_tiny_language_model, save_tiny_llava, tiny_image

GREEDY = Decoding(temperature=0.0, max_new_tokens=24, batch_size=8)
SAMPLED = Decoding(temperature=0.8, top_p=0.9, max_new_tokens=24, batch_size=8)
WORDS = [
    "what",
    "is",
    "the",
    "color",
    "of",
    "this",
    "image",
    "a",
    "photo",
    "blue",
    "square",
    "yes",
    "no",
    "0",
    "1",
    "2",
    "3",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_tiny_llava(root / "eyes")
    save_tiny_language_model(root / "text")
    images = root / "images"
    images.mkdir()
    for number in range(4):
        tiny_image(number, size=(32, 32) if number < 3 else (48, 40)).save(images / f"{number}.png")
    (images / "broken.png").write_bytes(b"no image")
    return root


def generator(root: Path, kind: str) -> TransformersGenerator:
    folder = root / "eyes" / "llava" if kind == "eyes" else root / "text"
    return TransformersGenerator(load_tiny(folder), Images(root / "images"), "cpu")


def requests_for(kind: str, number: int = 21) -> list[Request]:
    """Prompts of 1 to 40 words, some with history, some on the same image, some (of a model with eyes) without
    image."""
    luck = random.Random(3)
    requests = []
    for index in range(number):
        turns = ask(
            " ".join(luck.choices(WORDS, k=luck.randint(1, 40))),
            *(["who?", " ".join(luck.choices(WORDS, k=luck.randint(1, 9)))] if index % 4 == 0 else []),
        )
        image = f"{index % 4}.png" if kind == "eyes" and index % 5 else None
        requests.append(Request(key=f"r{index}", turns=turns, image=image, seed=1000 + index))
    return requests


def answers(made_by: TransformersGenerator, requests: Sequence[Request], decoding: Decoding) -> dict[str, Reply]:
    replies: list[Reply] = []
    made_by.generate(requests, decoding, replies.extend)
    assert sorted(reply.key for reply in replies) == sorted(request.key for request in requests)
    return {reply.key: reply for reply in replies}


@pytest.mark.parametrize("kind", ["eyes", "text"])
@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_batches_and_order_change_no_answer(root: Path, kind: str, decoding: Decoding) -> None:
    model, requests = generator(root, kind), requests_for(kind)
    alone = answers(model, requests, decoding.replace(batch_size=1))
    assert answers(model, requests, decoding.replace(batch_size=21)) == alone
    shuffled = random.Random(1).sample(requests, len(requests))
    assert answers(model, shuffled, decoding.replace(batch_size=5)) == alone
    assert len({reply.text for reply in alone.values()}) > 15, "answers that are all alike would prove nothing"


@pytest.mark.parametrize("kind", ["eyes", "text"])
def test_greedy_answers_are_those_of_a_plain_session(root: Path, kind: str) -> None:
    model, requests = generator(root, kind), requests_for(kind, 9)
    replies = answers(model, requests, GREEDY)
    fresh = load_tiny(root / "eyes" / "llava" if kind == "eyes" else root / "text")
    for request in requests:
        image = Images(root / "images").open(request.image) if request.image else None
        inputs = encode_prompt(fresh, request.turns, image)
        inputs.pop("token_type_ids", None)
        generate: Any = fresh.model.generate
        tokens = generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=0)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        assert replies[request.key].text == fresh.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_sampling_depends_on_the_seed(root: Path) -> None:
    model = generator(root, "text")
    question = ask("what is the color of this image?")
    requests = [Request(key=f"r{index}", turns=question, image=None, seed=index // 2) for index in range(8)]
    texts = [reply.text for _, reply in sorted(answers(model, requests, SAMPLED).items())]
    assert texts[0::2] == texts[1::2], "equal seeds, equal answers"
    assert len(set(texts)) == 4


def test_finish_and_special_tokens(root: Path) -> None:
    model = generator(root, "text")
    requests = [Request(key=str(seed), turns=ask("yes or no?"), image=None, seed=seed) for seed in range(64)]
    decoding = Decoding(temperature=2.0, max_new_tokens=100, batch_size=64)
    replies = answers(model, requests, decoding)
    assert {reply.finish for reply in replies.values()} == {"stop", "length"}
    assert not any("</s>" in reply.text or "yes or no?" in reply.text for reply in replies.values())
    short = answers(model, requests, decoding.replace(max_new_tokens=3))
    for key, reply in short.items():
        if reply.finish == "length":
            assert replies[key].text.startswith(reply.text.rstrip("\ufffd"))


def test_what_the_checkpoint_suggests_is_not_taken(root: Path, tmp_path: Path) -> None:
    folder = save_tiny_language_model(tmp_path / "model")
    config = {
        "do_sample": True,
        "temperature": 3.0,
        "top_k": 3,
        "repetition_penalty": 9.0,
        "num_beams": 2,
        "eos_token_id": [2, 5],
    }
    (folder / "generation_config.json").write_text(json.dumps(config))
    suggested = TransformersGenerator(load_tiny(folder), None, "cpu")
    assert suggested.stop_tokens == [2, 5]
    plain, requests = generator(root, "text"), requests_for("text", 6)
    plain.stop_tokens = [2, 5]
    for decoding in (GREEDY, SAMPLED):
        assert answers(suggested, requests, decoding) == answers(plain, requests, decoding)


@settings(deadline=None, max_examples=25)
@given(data=st.data(), size=st.integers(1, 7))
def test_a_plan_survives_the_loss_of_batches(root: Path, data: st.DataObject, size: int) -> None:
    model, requests = PLANNER.setdefault("model", generator(root, "eyes")), requests_for("eyes", 30)
    decoding = GREEDY.replace(batch_size=size)
    plan = model.plan(requests, decoding)
    assert sorted(request.key for batch in plan for request in batch) == sorted(request.key for request in requests)
    kept = [batch for batch in plan if data.draw(st.booleans())]
    left = [request for batch in kept for request in batch]
    random.Random(data.draw(st.integers(0, 9))).shuffle(left)
    assert model.plan(left, decoding) == kept


PLANNER: dict[str, TransformersGenerator] = {}
"""Loaded once for all examples of the test above; it is only asked to plan."""


def test_batches_come_longest_first(root: Path) -> None:
    model, requests = generator(root, "text"), requests_for("text", 30)
    lengths = [model.encoder.num_tokens(request) // 16 for batch in model.plan(requests, GREEDY) for request in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 3


@pytest.mark.parametrize("kind", ["eyes", "text"])
def test_the_quick_encoding_is_the_plain_one(root: Path, kind: str) -> None:
    model, requests = generator(root, kind), requests_for(kind)
    images = Images(root / "images")
    for _ in range(2):  # the second time from what was kept
        for request, row in zip(requests, model.encoder.encode(requests), strict=True):
            image = images.open(request.image) if request.image else None
            plain = encode_prompt(model.loaded, request.turns, image)
            assert torch.equal(row["input_ids"], plain["input_ids"])
            assert torch.equal(row["attention_mask"], plain["attention_mask"])
            assert ("pixel_values" in row) == (image is not None)
            if image is not None:
                assert torch.equal(row["pixel_values"], plain["pixel_values"])
    if kind == "eyes":
        assert set(model.encoder._copies.values()) == {4}, "both sizes went the quick way"


def test_a_processor_that_is_not_understood_goes_the_slow_way(root: Path) -> None:
    model, requests = generator(root, "eyes"), requests_for("eyes")
    quick = answers(model, requests, GREEDY)
    slow = generator(root, "eyes")
    slow.encoder._show_quick_way = lambda *_: None  # type: ignore[method-assign]
    assert answers(slow, requests, GREEDY) == quick
    assert not slow.encoder._pixels.num_bytes


def test_pixels_are_kept_up_to_a_limit() -> None:
    cache, pixels = PixelCache(limit=1000), torch.zeros(1, 100)  # 400 bytes each
    cache.put("a", pixels, 4)
    cache.put("b", pixels, 4)
    assert cache.get("a") is not None  # now b is the oldest
    cache.put("c", pixels, 4)
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.num_bytes == 800


@pytest.mark.parametrize("name", ["broken.png", "nowhere.png"])
def test_a_bad_image_is_named(root: Path, name: str) -> None:
    request = Request(key="r", turns=ask("what?"), image=name, seed=0)
    with pytest.raises(BadDataError, match=rf"data\.images: image '{name}'"):
        answers(generator(root, "eyes"), [request], GREEDY)


def test_nothing_asked_nothing_done(root: Path) -> None:
    assert answers(generator(root, "text"), [], GREEDY) == {}


def test_a_stop_is_noticed_within_a_long_answer(root: Path) -> None:
    def stop() -> None:
        raise TryAgainError("stopped")

    model = TransformersGenerator(load_tiny(root / "text"), None, "cpu", check=stop)
    endless = Decoding(temperature=0.0, max_new_tokens=400, batch_size=64)
    requests = [Request(key=str(index), turns=ask("a photo"), image=None, seed=index) for index in range(512)]
    with pytest.raises(TryAgainError, match="stopped"):
        answers(model, requests, endless)


def test_the_encoder_needs_no_images_for_text(root: Path) -> None:
    encoder = PromptEncoder(load_tiny(root / "eyes" / "llava"), None)
    assert "pixel_values" not in encoder.encode([Request(key="r", turns=ask("what?"), image=None, seed=0)])[0]
