"""What is supervised: the answer and its end mark, and nothing else (method section 12, row 9)."""

from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from comd_api.exit_codes import BadDataError
from comd_trainer.data.images import BadImageError
from comd_trainer.data.rows import Answer, Item, Pair, Turn
from comd_trainer.engine.batches import Collator, Example, RowError, check_share
from comd_trainer.engine.examples import from_answers, from_pairs
from comd_trainer.engine.loss import num_supervised, plain_loss, predicting_positions
from comd_trainer.models.load import LoadedModel
from comd_trainer.models.prompts import IGNORED, encode_prompt
from tests.tiny import NUM_PATCHES, ask, num_image_tokens, tiny_image, tiny_llava


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return tiny_llava(tmp_path_factory.mktemp("llava"))


def open_image(name: str) -> Image.Image:
    if name == "broken":
        raise BadImageError("image 'broken' does not decode: half of it")
    return tiny_image(len(name))


def collator(llava: LoadedModel, max_length: int = 200) -> Collator:
    return Collator(loaded=llava, open_image=open_image, max_length=max_length)


def example(
    answer: str = "it is red",
    *,
    turns: tuple[Turn, ...] | None = None,
    image: str | None = "a",
    complete: bool = True,
) -> Example:
    asked = ask("What is it?") if turns is None else turns
    return Example(id=answer[:9], image=image, turns=asked, answer=answer, complete=complete)


def supervised(llava: LoadedModel, row: dict[str, torch.Tensor]) -> str:
    labels = row["labels"][0]
    assert torch.equal(labels[labels != IGNORED], row["input_ids"][0][labels != IGNORED])
    return str(llava.tokenizer.decode(labels[labels != IGNORED]))


@pytest.mark.parametrize("image", ["a", None])
@pytest.mark.parametrize("turns", [ask("What is it?"), ask("And this?", "What is it?", "a square", "Sure?", "yes")])
def test_the_last_answer_and_its_end_mark_are_supervised(
    llava: LoadedModel, image: str | None, turns: tuple[Turn, ...]
) -> None:
    row = collator(llava).encode(example(image=image, turns=turns))
    assert supervised(llava, row) == "it is red</s>"
    prompt = encode_prompt(llava, turns, None if image is None else open_image(image))["input_ids"]
    num_prompt = prompt.shape[1]
    assert torch.equal(row["input_ids"][:, :num_prompt], prompt)
    assert (row["labels"][:, :num_prompt] == IGNORED).all()
    assert num_image_tokens(llava, row["input_ids"]) == (NUM_PATCHES if image else 0)
    assert ("pixel_values" in row) == (image is not None)
    assert row["attention_mask"].shape == row["input_ids"].shape == row["labels"].shape


def test_an_answer_that_was_cut_off_has_no_end_mark(llava: LoadedModel) -> None:
    assert supervised(llava, collator(llava).encode(example(complete=False))) == "it is red"


def test_plain_rows_are_image_then_caption(llava: LoadedModel) -> None:
    row = collator(llava).encode(example("a blue square", turns=()))
    text = llava.tokenizer.decode(row["input_ids"][0])
    assert text.replace(" ", "") == "<s>" + "<image>" * NUM_PATCHES + "abluesquare</s>"
    assert supervised(llava, row) == "a blue square</s>"
    with pytest.raises(RowError, match="it has no question"):
        collator(llava).encode(example(turns=(), image=None))


def test_a_long_row_loses_the_end_of_its_answer_and_never_an_image_token(llava: LoadedModel) -> None:
    whole = collator(llava).encode(example("red " * 20))
    num_prompt = int((whole["labels"] == IGNORED).sum())
    cut = collator(llava, max_length=num_prompt + 3).encode(example("red " * 20))
    assert cut["input_ids"].shape[1] == num_prompt + 3
    assert torch.equal(cut["input_ids"], whole["input_ids"][:, : num_prompt + 3])
    assert num_image_tokens(llava, cut["input_ids"]) == NUM_PATCHES
    assert not supervised(llava, cut).endswith("</s>")
    with pytest.raises(
        RowError, match=rf"its prompt alone has {num_prompt} tokens, and training.maxLength is {num_prompt}"
    ):
        collator(llava, max_length=num_prompt).encode(example("red"))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "is empty"),
        ("see <image> here", "contains the image token"),
        ("done</s> not", "contains the end mark"),
        ("<s>", "the start mark"),
    ],
)
def test_answers_that_would_teach_something_else_are_dropped(llava: LoadedModel, answer: str, why: str) -> None:
    with pytest.raises(RowError, match=why):
        collator(llava).encode(example(answer))


@pytest.mark.parametrize("answer", ["Grüße, 世界!", "  two  spaces ", "line\nbreak", "½ 🏖️", "<b>tag</b>"])
def test_any_other_text_is_an_answer(llava: LoadedModel, answer: str) -> None:
    assert supervised(llava, collator(llava).encode(example(answer))) == answer + "</s>"


def test_a_question_may_hold_the_image_token_as_llavas_data_do(llava: LoadedModel) -> None:
    plain = collator(llava).encode(example(turns=ask("What is it?")))
    marked = collator(llava).encode(example(turns=ask("<image>\nWhat is it?")))
    assert torch.equal(plain["input_ids"], marked["input_ids"])


def test_mixed_batches_pad_on_the_right_and_keep_images_in_order(llava: LoadedModel) -> None:
    rows = [example("short"), example("no image", image=None), example("a longer answer than that", image="abc")]
    batch = collator(llava)(rows)
    single = [collator(llava).encode(row) for row in rows]
    assert batch.rows == tuple(row.id for row in rows)
    assert torch.equal(batch.inputs["pixel_values"], torch.cat([single[0]["pixel_values"], single[2]["pixel_values"]]))
    for index, row in enumerate(single):
        length = row["input_ids"].shape[1]
        for name, fill in (("input_ids", llava.pad_token_id), ("attention_mask", 0), ("labels", IGNORED)):
            assert torch.equal(batch.inputs[name][index, :length], row[name][0])
            assert (batch.inputs[name][index, length:] == fill).all()
    together = plain_loss(llava.model, batch.inputs)
    apart = sum(plain_loss(llava.model, row) for row in single)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_bad_rows_are_left_out_and_named(llava: LoadedModel) -> None:
    batch = collator(llava)([example("good"), example("bad image", image="broken"), example("")])
    assert batch.rows == ("good",)
    assert list(batch.dropped) == ["bad image", ""]
    assert "does not decode" in batch.dropped["bad image"]


@pytest.mark.parametrize("rows", [[], [example("", image=None)], [example("text", image=None)]])
def test_every_micro_batch_runs_the_vision_tower_and_blanks_count_for_nothing(
    llava: LoadedModel, rows: list[Example]
) -> None:
    batch = collator(llava)(rows)
    assert "pixel_values" in batch.inputs
    assert (batch.inputs["labels"][-1] == IGNORED).all()
    loss = plain_loss(llava.model, batch.inputs)
    if not batch.rows:
        assert num_supervised(batch.inputs) == 0
        assert float(loss) == 0.0
        llava.model.zero_grad()
        loss.backward()
        assert all(
            float(value.grad.abs().sum()) == 0 for value in llava.model.lm_head.parameters() if value.grad is not None
        )


def test_only_positions_before_supervised_tokens_are_predicted() -> None:
    labels = torch.full((2, 6), IGNORED)
    labels[0, 4], labels[1, 2] = 7, 7
    assert predicting_positions(labels).tolist() == [1, 3]
    assert predicting_positions(torch.full((2, 6), IGNORED)).tolist() == [0]


def test_too_many_bad_rows_end_training() -> None:
    check = partial(check_share, num_rows=100, max_fraction=0.05, reasons={"row-1": "its answer is empty"})
    check(num_dropped=5, num_seen=20)
    check(num_dropped=10, num_seen=200)
    with pytest.raises(BadDataError, match=r"6 of 100 training rows .* row-1: its answer is empty"):
        check(num_dropped=6, num_seen=20)


def test_examples_from_pairs_and_answers() -> None:
    pairs = [Pair(id=f"p{number}", image="a.png", caption=f"caption {number}") for number in range(40)]
    asked = from_pairs(pairs, instructions=["Describe.", "What is this?"], seed=1)
    assert {row.turns[0].text for row in asked} == {"Describe.", "What is this?"}
    assert asked == from_pairs(pairs, instructions=["Describe.", "What is this?"], seed=1)
    assert asked[10:] == from_pairs(pairs[10:], instructions=["Describe.", "What is this?"], seed=1)
    assert all(row.turns == () for row in from_pairs(pairs, instructions=[], seed=1))
    items = [Item(id=str(number), image=None, turns=ask("Why?"), origin="seed") for number in range(2)]
    answers = [
        Answer(item="0", model="m", text="so", finish="stop"),
        Answer(item="1", model="m", text="as lo", finish="length"),
    ]
    assert [row.complete for row in from_answers(items, answers)] == [True, False]
    with pytest.raises(AssertionError):
        from_answers(items, answers[::-1])


def test_checkpoints_run_no_code(tmp_path: Path) -> None:
    import pickle

    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    from comd_trainer.engine.restricted import RestrictedCheckpointEngine

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"module": Evil()}, tmp_path / "state.pt")
    with pytest.raises(pickle.UnpicklingError):
        RestrictedCheckpointEngine(TorchCheckpointEngine()).load(str(tmp_path / "state.pt"))
    assert not (tmp_path / "ran").exists()
