"""Our loss on a batch is the loss that TRL's SFTTrainer computes on the same batch of the same tiny LLaVA."""

from pathlib import Path
from typing import Any

import pytest
import torch

from comd_trainer.engine.batches import Collator, Example
from comd_trainer.engine.loss import num_supervised, plain_loss
from comd_trainer.models.load import LoadedModel
from tests.tiny import ask, load_tiny, tiny_image

ANSWERS = ("red", "the image is red and blue", "a blue square, I think")


def load(models: Path) -> LoadedModel:
    """With a template that writes the start mark itself: TRL never adds one, transformers' processors (and we) do where it is missing."""
    loaded = load_tiny(models / "MLP/llava")
    loaded.processor.chat_template = "{{ bos_token }}" + loaded.processor.chat_template
    return loaded


@pytest.fixture
def trainer(models: Path, tmp_path: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    loaded = load(models)
    rows = [
        {
            "prompt": [{"role": "user", "content": "What is it?"}],
            "completion": [{"role": "assistant", "content": answer}],
            "images": [tiny_image(number)],
        }
        for number, answer in enumerate(ANSWERS)
    ]
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, max_length=None, per_device_train_batch_size=len(rows), report_to=[],
        gradient_checkpointing=False, loss_type="nll",
    )  # fmt: skip
    return trl.SFTTrainer(
        model=loaded.model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=loaded.processor,
    )


def test_same_loss_as_trl(trainer: Any, models: Path) -> None:
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, {**batch}, num_items_in_batch=None)
    loaded = load(models)
    collate = Collator(loaded=loaded, open_image=lambda name: tiny_image(int(name)), max_length=2048)
    ours = collate(
        [
            Example(id=str(number), image=str(number), turns=ask("What is it?"), answer=answer)
            for number, answer in enumerate(ANSWERS)
        ]
    )
    assert int((batch["labels"] != -100).sum()) == num_supervised(ours.inputs)
    with torch.no_grad():
        loss = plain_loss(loaded.model, ours.inputs) / num_supervised(ours.inputs)
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)
