"""Likelihoods of given answers: those of a plain forward pass, whatever the batch, and made once."""

# ruff: noqa: F811 - fixtures that are imported

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from comd_api.exit_codes import BadDataError
from comd_trainer.context import PhaseContext
from comd_trainer.data.rows import Item
from comd_trainer.generation import open as opening
from comd_trainer.generation.likelihood import score_answers
from comd_trainer.models.prompts import encode_answer, encode_prompt
from tests.tiny import load_tiny
from tests.unit.test_generation_calls import context, forbid, items, models, root  # noqa: F401 - two are fixtures


def scored(ctx: PhaseContext, rows: list[tuple[Item, str]], models: Path, **options: Any) -> list[float]:
    options = {"fingerprint": "sha256:m", **options}
    return score_answers(ctx, checkpoint=models / "llava", rows=rows, field="spec.assessor.model", **options)


def answer_rows() -> list[tuple[Item, str]]:
    return [(item, "red " * (index % 5) + str(index)) for index, item in enumerate(items())] + [
        (items()[2], ""),
        (items()[2], "blue"),
    ]


def test_likelihoods_are_means_over_answer_and_end_mark(root: Path, models: Path) -> None:
    ctx = context(root)
    values = scored(ctx, answer_rows(), models, batch_size=5)
    loaded, images = load_tiny(models / "llava"), opening.open_images(ctx)
    for (item, answer), value in zip(answer_rows(), values, strict=True):
        inputs = encode_prompt(loaded, item.turns, images.open(item.image) if item.image else None)
        wanted = encode_answer(loaded, answer)
        ids = torch.cat([inputs["input_ids"], torch.tensor([wanted])], dim=1)
        pixels = {"pixel_values": inputs["pixel_values"]} if "pixel_values" in inputs else {}
        with torch.no_grad():
            logits = loaded.model(input_ids=ids, **pixels).logits[0, -len(wanted) - 1 : -1].double()
        mean = logits.log_softmax(-1)[range(len(wanted)), wanted].mean().item()
        assert value == pytest.approx(mean, abs=2e-5)
        assert value < 0
        assert value == round(value, 6)


def test_likelihoods_of_a_text_only_model(root: Path, models: Path) -> None:
    rows = [(replace(item, image=None), answer) for item, answer in answer_rows()]
    values = score_answers(
        context(root),
        checkpoint=models / "language",
        fingerprint="sha256:text",
        field="spec.assessor.model",
        rows=rows,
        batch_size=6,
    )
    loaded = load_tiny(models / "language")
    for (item, answer), value in zip(rows, values, strict=True):
        prompt, wanted = encode_prompt(loaded, item.turns, None)["input_ids"], encode_answer(loaded, answer)
        ids = torch.cat([prompt, torch.tensor([wanted])], dim=1)
        labels = torch.cat([torch.full_like(prompt, -100), torch.tensor([wanted])], dim=1)
        with torch.no_grad():
            assert value == pytest.approx(-loaded.model(input_ids=ids, labels=labels).loss.item(), abs=2e-5)


def test_likelihoods_do_not_depend_on_the_batch(root: Path, models: Path) -> None:
    alone = scored(context(root), answer_rows(), models, batch_size=1, fingerprint="sha256:a")
    together = scored(context(root), answer_rows(), models, batch_size=16, fingerprint="sha256:b")
    assert together == pytest.approx(alone, abs=2e-6)


def test_likelihoods_are_kept(root: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = scored(context(root), answer_rows(), models)
    forbid(monkeypatch, "load_model")
    assert scored(context(root), answer_rows()[::-1], models)[::-1] == values


def test_a_model_that_gives_no_number_is_bad_data(root: Path, models: Path) -> None:
    opening._kept.clear()
    loaded = opening.load_on_device(context(root), models / "llava", field="f")
    loaded.model.get_output_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(BadDataError, match=r"spec\.assessor\.model: the model gives no number"):
        scored(context(root), answer_rows(), models)
    opening._kept.clear()
