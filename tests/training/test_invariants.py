"""How rows are spread over ranks and micro-batches changes cost, never the result."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from comd_trainer.data.seeds import derive
from comd_trainer.engine.batches import Collator
from comd_trainer.engine.order import Order
from comd_trainer.engine.schedule import learning_rate
from comd_trainer.models.freeze import freeze
from comd_trainer.models.prompts import IGNORED
from tests.tiny import load_tiny, tiny_image
from tests.training.ranks import BATCH_SIZE, NUM_ROWS, NUM_STEPS, Case, result, rows, run_ranks, weights

STAGES = (0, 1, 2, 3)
MAX_WEIGHT_ERROR = 2e-5
"""Of weights moved by up to 1e-3 a step: sums in another order, seen through Adam's division."""


def reference(models: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same training in plain torch, one row at a time, without anything of ours but the rows and their order."""
    loaded = load_tiny(models / "MLP/llava")
    parameters = [value for _, value in freeze(loaded.model, ["Projector", "LanguageModel"], field="trainable")]
    decayed = [value for value in parameters if value.dim() >= 2]
    other = [value for value in parameters if value.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": other, "weight_decay": 0.0}])
    collate = Collator(loaded=loaded, open_image=lambda name: tiny_image(int(name)), max_length=2048)
    order = Order(num_rows=NUM_ROWS, batch_size=BATCH_SIZE, seed=3)
    examples, losses = rows(), []
    loaded.model.train()
    for step in range(NUM_STEPS):
        encoded = [collate.encode(examples[row]) for row in order.batch(step)]
        num_tokens = sum(int((row["labels"] != IGNORED).sum()) for row in encoded)
        total = torch.zeros(())
        for row in encoded:
            labels = row.pop("labels")
            logits = loaded.model(**row).logits
            chosen = torch.log_softmax(logits[0, :-1], dim=-1).gather(1, labels[0, 1:].clamp(min=0)[:, None])[:, 0]
            total = total - chosen[labels[0, 1:] != IGNORED].sum()
        loss = total / num_tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, num_steps=NUM_STEPS, peak=1e-3, scheduler="Cosine", warmup_ratio=0.03, min_ratio=0.0
            )
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses, {name: value.detach().clone() for name, value in loaded.model.named_parameters()}


@pytest.fixture(scope="module")
def runs(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Losses and weights of every ZeRO stage with every spread of 8 rows."""
    folder = tmp_path_factory.mktemp("spread")
    (folder / "MLP").symlink_to(models / "MLP")
    spreads = {1: (1, 8), 2: (2, 4)}
    found = {}
    for world_size, micros in spreads.items():
        cases = [
            Case(name=f"zero{stage}-{world_size}x{micro}", stage=stage, micro=micro)
            for stage in STAGES
            for micro in micros
        ]
        cases += [Case(name=f"checkpointing-{world_size}", stage=3, micro=4, checkpointing=True)]
        # Sequences of two or three rows, unequal numbers of them on the ranks; then all rows in one.
        cases += [
            Case(
                name=f"packed-{tokens}-zero{stage}-{world_size}", stage=stage, packing=tokens, checkpointing=stage == 2
            )
            for stage in STAGES
            for tokens in (128, 2048)
        ]
        # Five positions at a time: a micro-batch predicts about fifty.
        cases += [
            Case(name=f"chunked-zero{stage}-{world_size}", stage=stage, chunk_logits=1500, checkpointing=stage == 1)
            for stage in STAGES
        ]
        assert run_ranks(cases, folder=folder, world_size=world_size) == [0] * world_size
        for case in cases:
            found[case.name] = {**result(folder, case), "weights": load(weights(folder, case))}
    return found


def test_every_spread_gives_the_losses_and_weights_of_plain_torch(
    models: Path, runs: dict[str, dict[str, Any]]
) -> None:
    losses, expected = reference(models)
    start = {name: value.detach() for name, value in load_tiny(models / "MLP/llava").model.named_parameters()}
    moved = {name for name in expected if not torch.equal(expected[name], start[name])}
    assert any("language_model" in name for name in moved)
    assert any("multi_modal_projector" in name for name in moved)
    assert not any("vision_tower" in name for name in moved)
    for name, run in runs.items():
        np.testing.assert_allclose(run["losses"], losses, rtol=2e-5, err_msg=name)
        assert run["weights"].keys() == expected.keys(), name
        for key, value in run["weights"].items():
            error = float((value - expected[key]).abs().max())
            assert error <= MAX_WEIGHT_ERROR, f"{name}: {key} is {error} off"
            if key not in moved:
                assert torch.equal(value, start[key]), f"{name}: {key} is frozen and has moved"


def test_all_runs_count_the_same_tokens(runs: dict[str, dict[str, Any]]) -> None:
    assert len({run["tokens"] for run in runs.values()}) == 1
    assert all(run["dropped"] == {} for run in runs.values())


def test_twenty_steps_are_one_curve_for_all_stages_and_numbers_of_ranks(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("curve")
    (folder / "MLP").symlink_to(models / "MLP")
    curves: dict[str, list[float]] = {}
    for world_size in (1, 2, 4):
        cases = [Case(name=f"zero{stage}-{world_size}", stage=stage, micro=2, steps=20) for stage in STAGES]
        cases.append(Case(name=f"packed-{world_size}", stage=2, packing=128, steps=20))
        assert run_ranks(cases, folder=folder, world_size=world_size) == [0] * world_size
        curves |= {case.name: result(folder, case)["losses"] for case in cases}
    first = curves["zero0-1"]
    assert len(first) == 20
    assert first[-1] < 0.9 * first[0]
    for name, losses in curves.items():
        np.testing.assert_allclose(losses, first, rtol=1e-4, err_msg=name)


def test_dropout_draws_differ_by_rank() -> None:
    assert derive(3, "dropout", 0) != derive(3, "dropout", 1)
