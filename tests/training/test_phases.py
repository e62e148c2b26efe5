"""The training phases from manifest to checkpoint folder: composed, pre-trained, tuned on a teacher's answers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from comd_api.exit_codes import UserError
from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_trainer.context import PhaseContext
from comd_trainer.data.rows import Answer, Item, write_rows
from comd_trainer.phases import pretrain, tune
from comd_trainer.store.artifacts import Artifact, open_artifact, publish
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import open_store
from tests.tiny import ask, load_tiny, save_tiny_language_model, save_tiny_vision_tower, tiny_image
from tests.training.ranks import SPAWN

FINGERPRINTS = dict.fromkeys(
    ("images", "pairs.jsonl", "seed.jsonl", "parts/vision", "parts/language", "models/teacher"), "sha256:" + "0" * 64
)


def spec(root: Path, **changes: Any) -> RunSpec:
    wire: dict[str, Any] = {
        "student": {
            "composed": {
                "visionTower": {"source": "parts/vision"},
                "projector": {},
                "languageModel": {"source": "parts/language"},
            }
        },
        "teacher": {"checkpoint": {"source": "models/teacher"}},
        "data": {
            "images": "images",
            "seed": {"instructions": "seed.jsonl"},
            "pretraining": "pairs.jsonl",
            "maxBadRowFraction": 0.2,
        },
        "pretraining": {"batchSize": 4, "learningRate": 0.01},
        "training": {
            "batchSize": 4,
            "microBatchSize": 2,
            "precision": "fp32",
            "learningRate": 0.01,
            "firstRound": {"batchSize": 8},
        },
        "storage": {"uri": f"file://{root}"},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = wire
        for parent in parents:
            node = node[parent]
        node[last] = value
    return RunSpec.model_validate(wire)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Storage with parts, images, pairs (one with an image that is no image) and a teacher's answers."""
    save_tiny_vision_tower(tmp_path / "parts/vision")
    save_tiny_language_model(tmp_path / "parts/language")
    (tmp_path / "images").mkdir()
    for number in range(8):
        tiny_image(number).save(tmp_path / f"images/{number}.png")
    (tmp_path / "images/7.png").write_bytes(b"no image")
    pairs = [{"id": f"pair-{number}", "image": f"{number}.png", "caption": f"noise {number}"} for number in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    teach = tmp_path / "made"
    teach.mkdir()
    items = [
        Item(id=str(number), image=f"{number % 7}.png" if number % 3 else None, turns=ask("What?"), origin="seed")
        for number in range(10)
    ]
    write_rows(teach / "items.jsonl", items)
    write_rows(
        teach / "answers.jsonl",
        [Answer(item=item.id, model="t", text="red " * (1 + int(item.id) % 3), finish="stop") for item in items],
    )
    return tmp_path


def run_phase(
    phase: Any, root: Path, wanted: RunSpec, *, name: str, round_: int, artifacts: Mapping[str, Artifact]
) -> tuple[Artifact, dict[str, Any]]:
    """Runs a phase in one rank, in a process of its own, and publishes what it leaves as the supervisor does."""
    config = StageConfig(namespace="n", run="r", stage=f"round-{round_}", round=round_, phases=["tune"], spec=wanted)
    home = root / "work" / name
    for folder in ("out", "scratch"):
        (home / folder).mkdir(parents=True)
    process = SPAWN.Process(
        target=_rank,
        args=(phase.__name__, config.to_wire(), str(home), {key: value.prefix for key, value in artifacts.items()}),
    )
    process.start()
    process.join(timeout=240)
    assert process.exitcode == 0
    assert wanted.storage is not None
    store = open_store(wanted.storage.uri, wanted.storage.s3)
    meta = json.loads((home / "scratch/meta.json").read_text())
    artifact = publish(
        store, prefix=f"n/{name}", kind=name, key="k", folder=home / "out", meta=meta, cache_dir=root / "cache"
    )
    return artifact, meta


def _rank(module: str, wire: dict[str, Any], home: str, prefixes: dict[str, str]) -> None:
    import importlib
    import os

    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo", init_method=f"file://{home}/meeting", rank=0, world_size=1)
    config = StageConfig.model_validate_json(json.dumps(wire))
    storage = config.spec.storage
    assert storage is not None
    store, cache = open_store(storage.uri, storage.s3), Path(home) / "cache"
    opened = {name: open_artifact(store, prefix, cache_dir=cache) for name, prefix in prefixes.items()}
    ctx = PhaseContext(
        config=config,
        store=store,
        sources=Sources(storage, store, cache),
        artifacts={name: artifact for name, artifact in opened.items() if artifact is not None},
        fingerprints=FINGERPRINTS,
        out=Path(home) / "out",
        scratch=Path(home) / "scratch",
        partial=f"n/partial/{config.stage}",
    )
    importlib.import_module(module).run(ctx)
    dist.destroy_process_group()


def test_a_student_is_composed_pre_trained_and_tuned(root: Path) -> None:
    wanted = spec(root)
    assert wanted.storage is not None
    store = open_store(wanted.storage.uri, wanted.storage.s3)
    first, meta = run_phase(pretrain, root, wanted, name="pretrain", round_=0, artifacts={})
    assert meta["steps"] == 2
    assert meta["rows"] == 8
    assert list(meta["droppedRows"]["rows"]) == ["pair-7"]
    assert "does not decode" in meta["droppedRows"]["rows"]["pair-7"]

    teach = publish(
        store, prefix="n/teach", kind="teach", key="k", folder=root / "made", meta={}, cache_dir=root / "cache"
    )
    second, meta = run_phase(tune, root, wanted, name="tune", round_=1, artifacts={"student": first, "teach": teach})
    assert meta["steps"] == 6, "two batches of 8 an epoch, as firstRound says, for three epochs"
    losses = [json.loads(line)["loss"] for line in second.path("training.jsonl").read_text().splitlines()]
    assert losses[-1] == meta["finalLoss"] < losses[0]

    before, after = (dict(load_tiny(artifact.folder()).model.named_parameters()) for artifact in (first, second))
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    frozen = [name for name in before if "vision_tower" in name or "linear_2" in name]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert torch.equal(after["model.multi_modal_projector.linear_2.weight"], torch.eye(32))


@pytest.mark.parametrize("precision", ["bf16"])
def test_instructions_and_precision(root: Path, precision: str) -> None:
    wanted = spec(
        root, pretraining__instructions=["Describe it."], pretraining__maxSteps=3, training__precision=precision
    )
    artifact, meta = run_phase(pretrain, root, wanted, name="pretrain", round_=0, artifacts={})
    assert meta["steps"] == 3
    assert load_tiny(artifact.folder()).model.config.dtype == torch.float32
    stored = json.loads(artifact.path("config.json").read_text())["dtype"]
    assert stored == "bfloat16"


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"training__learningRate": 0.5}, False),
        ({"training__firstRound": {"learningRate": 0.5}}, True),
        ({"training__microBatchSize": 1}, False),
        ({"training__deepspeed": {"zeroStage": 3}}, False),
        ({"training__checkpointSteps": 7}, False),
        ({"training__maxLength": 64}, True),
        ({"training__precision": "bf16"}, True),
        ({"seed": 5}, True),
    ],
)
def test_what_a_tuned_student_depends_on(tmp_path: Path, change: dict[str, Any], differs: bool) -> None:
    def recipe(wanted: RunSpec) -> dict[str, Any]:
        config = StageConfig(namespace="n", run="r", stage="round-1", round=1, phases=["tune"], spec=wanted)
        return tune.recipe(config, FINGERPRINTS)

    base = {"training__firstRound": {"learningRate": 0.1, "batchSize": 8}}
    assert (recipe(spec(tmp_path, **base)) != recipe(spec(tmp_path, **{**base, **change}))) == differs


@pytest.mark.parametrize(
    ("round_", "first", "expected"),
    [
        (
            2,
            {"learningRate": 0.5, "epochs": 1.0},
            {"learning_rate": 0.01, "batch_size": 4, "epochs": 3.0, "max_steps": 9},
        ),
        (1, {}, {"learning_rate": 0.01, "batch_size": 128, "epochs": 3.0, "max_steps": 9}),
        (1, {"epochs": 1.0}, {"learning_rate": 0.01, "batch_size": 128, "epochs": 1.0, "max_steps": None}),
        (1, {"epochs": 1.0, "maxSteps": 2}, {"learning_rate": 0.01, "batch_size": 128, "epochs": 1.0, "max_steps": 2}),
    ],
)
def test_numbers_of_a_round(tmp_path: Path, round_: int, first: dict[str, Any], expected: dict[str, Any]) -> None:
    assert tune.numbers(spec(tmp_path, training__firstRound=first, training__maxSteps=9), round_=round_) == expected


def test_a_text_model_is_no_student(root: Path) -> None:
    from comd_trainer.phases.training import open_student

    wanted = spec(root, student={"checkpoint": {"source": "parts/language"}})
    assert wanted.storage is not None
    store = open_store(wanted.storage.uri, wanted.storage.s3)
    ctx = PhaseContext(
        config=StageConfig(namespace="n", run="r", stage="pretrain", phases=["pretrain"], spec=wanted),
        store=store,
        sources=Sources(wanted.storage, store, root / "cache"),
        artifacts={},
        fingerprints={},
        out=root,
        scratch=root,
        partial="p",
    )
    with pytest.raises(UserError, match=r"spec.student.checkpoint.source: .* is a llama model, which sees no images"):
        open_student(ctx)
