"""The loss in chunks and over packed rows is the plain loss, and models that would make it another one are found out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from comd_api.exit_codes import UserError
from comd_trainer.engine import loss
from comd_trainer.engine.batches import Collator, Example, MicroBatch
from comd_trainer.engine.loss import LossModel, plain_loss, takes_hidden_states
from comd_trainer.engine.proofs import check_packing
from comd_trainer.models.load import LoadedModel
from comd_trainer.models.prompts import Encoded
from tests.tiny import ask, tiny_image, tiny_llava

EXAMPLES = [
    Example(
        id=str(number),
        image=str(number) if number % 3 else None,
        turns=ask("What is it?"),
        answer="red " * (1 + 5 * number),
    )
    for number in range(6)
]


@pytest.fixture
def llava(tmp_path: Path) -> LoadedModel:
    return tiny_llava(tmp_path)


def collator(llava: LoadedModel) -> Collator:
    return Collator(loaded=llava, open_image=lambda name: tiny_image(int(name)), max_length=200)


def batches(llava: LoadedModel, limit: int) -> list[MicroBatch]:
    collate = collator(llava)
    return collate.packed([collate.make(example) for example in EXAMPLES], limit=limit)


def gradients(model: Any, losses: list[Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    torch.stack(losses).sum().backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_change_neither_loss_nor_gradients(
    llava: LoadedModel, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = collator(llava)(EXAMPLES).inputs
    expected = plain_loss(llava.model, batch)
    by_name = gradients(llava.model, [expected])
    num_tokens = llava.model.config.get_text_config().vocab_size
    monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk * num_tokens)
    made: list[int] = []
    llava.model.lm_head.register_forward_hook(lambda *_: made.append(1))
    head_rows: list[int] = []
    logits_of: Any = llava.model.lm_head.forward

    def watched(hidden: Tensor) -> Any:
        head_rows.append(len(hidden))
        return logits_of(hidden)

    llava.model.lm_head.forward = watched
    chunked = LossModel(llava.model, chunked=True)
    found = chunked(batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same(gradients(llava.model, [found]), by_name)
    assert max(head_rows) <= chunk, "more logits than one chunk's were made"
    assert len(made) == 1, "ZeRO-3 gathers the head's weight at each call"


@pytest.mark.parametrize("limit", [110, 150, 4000])
@pytest.mark.parametrize("chunked", [False, True])
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(llava: LoadedModel, limit: int, chunked: bool) -> None:
    expected = plain_loss(llava.model, collator(llava)(EXAMPLES).inputs)
    by_name = gradients(llava.model, [expected])
    packed = batches(llava, limit)
    assert sorted(row for batch in packed for row in batch.rows) == [example.id for example in EXAMPLES]
    assert (len(packed) == 1) == (limit == 4000)
    model = LossModel(llava.model, chunked=chunked)
    losses = [model(batch.inputs) for batch in packed]
    torch.testing.assert_close(torch.stack(losses).sum(), expected, rtol=1e-5, atol=1e-4)
    assert_same(gradients(llava.model, losses), by_name)


def test_rows_without_images_are_packed_with_a_blank_one(llava: LoadedModel) -> None:
    collate = collator(llava)
    made = [collate.make(example) for example in EXAMPLES if example.image is None]
    (batch,) = collate.packed([*made, collate.make(EXAMPLES[0])], limit=4000)
    assert "pixel_values" in batch.inputs
    assert batch.num_images == 0
    (nothing,) = collate.packed([], limit=4000)
    assert float(LossModel(llava.model, chunked=True)(nothing.inputs).detach()) == 0.0


def test_bad_rows_are_named_with_the_first_pack(llava: LoadedModel) -> None:
    collate = collator(llava)
    bad = Example(id="bad", image=None, turns=ask("What?"), answer="")
    packed = collate.packed([collate.make(example) for example in [*EXAMPLES, bad]], limit=110)
    assert [batch.dropped for batch in packed] == [{"bad": "its answer is empty"}, *[{}] * (len(packed) - 1)]


def row(llava: LoadedModel, number: int) -> Encoded:
    return collator(llava).encode(EXAMPLES[number])


def test_a_model_that_scales_its_logits_keeps_its_own_forward_pass(
    llava: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert takes_hidden_states(llava.model, row(llava, 1))
    plain = type(llava.model).forward

    def scaled(self: Any, **inputs: Any) -> Any:
        output = plain(self, **inputs)
        output.logits = output.logits / 2
        return output

    monkeypatch.setattr(type(llava.model), "forward", scaled)
    assert not takes_hidden_states(llava.model, row(llava, 1))


def test_packing_is_proved_on_the_model(llava: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = row(llava, 1), row(llava, 2)
    check_packing(llava, first, second)
    plain = llava.model.forward

    def one_long_row(**inputs: Any) -> Any:
        return plain(**{name: value for name, value in inputs.items() if name != "position_ids"})

    monkeypatch.setattr(llava.model, "forward", one_long_row)
    with pytest.raises(
        UserError, match=r"packing is set, and LlavaForConditionalGeneration .*a row sees the one before"
    ):
        check_packing(llava, first, second)

    def shifted(**inputs: Any) -> Any:
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"] * 3
        return plain(**inputs)

    monkeypatch.setattr(llava.model, "forward", shifted)
    with pytest.raises(UserError, match=r"packing is set, .*(a row's loss is|a row sees)"):
        check_packing(llava, first, second)

    def refuses(**inputs: Any) -> Any:
        if "position_ids" in inputs:
            raise ValueError("needs four kinds of positions")
        return plain(**inputs)

    monkeypatch.setattr(llava.model, "forward", refuses)
    with pytest.raises(UserError, match=r"needs four kinds of positions\); leave it out"):
        check_packing(llava, first, second)
