"""Ranks of a phase share the work through a real process group, and all see what one rank alone would."""

# ruff: noqa: F811 - fixtures that are imported

import json
import multiprocessing
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import torch

from comd_api.recipe import Decoding
from comd_trainer.generation.base import Reply, Request
from comd_trainer.generation.transformers import TransformersGenerator
from comd_trainer.models.prompts import Encoded
from tests.unit.test_generation_calls import SAMPLED, context, items, models, root, teach  # noqa: F401 - two are fixtures
from tests.unit.test_generation_likelihood import answer_rows, scored


def rank_main(root: str, rank: int, port: int, world_size: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world_size))
    ctx = context(Path(root), rank=rank, world_size=world_size)
    counted: list[int] = []
    real = TransformersGenerator._answer

    def count(
        self: TransformersGenerator, batch: Sequence[Request], inputs: Encoded, decoding: Decoding
    ) -> list[Reply]:
        counted.append(len(batch))
        return real(self, batch, inputs, decoding)

    TransformersGenerator._answer = count  # type: ignore[method-assign]
    answers, made = teach(ctx, items(), SAMPLED)
    means = scored(ctx, answer_rows(), Path(root) / "models", batch_size=3)
    again, made_again = teach(ctx, items(), SAMPLED)
    assert again == answers
    report = {
        "texts": [answer.text for answer in answers],
        "made": made,
        "again": made_again,
        "counted": counted,
        "means": means,
    }
    (Path(root) / f"rank-{rank}.json").write_text(json.dumps(report))
    torch.distributed.destroy_process_group()


def test_ranks_share_the_work_and_see_the_same(root: Path, models: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=rank_main, args=(str(root), rank, port, 2)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=200)
    assert [process.exitcode for process in ranks] == [0, 0]
    first, second = (json.loads((root / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first["counted"] == [4, 4], "batches 0 and 2 of [4, 4, 4, 2]"
    assert second["counted"] == [4, 2]
    for report in (first, second):
        assert report["made"] == report["again"] == 14
    assert first["texts"] == second["texts"]
    assert first["means"] == second["means"]
    # One rank alone says the same.
    (root / "cache").rename(root / "cache-of-two")
    alone, _ = teach(context(root), items(), SAMPLED)
    assert [answer.text for answer in alone] == first["texts"]
    assert scored(context(root), answer_rows(), models, batch_size=3) == first["means"]
