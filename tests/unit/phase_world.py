"""A small run for tests of phases: a real store, real images, and scripted models that answer by a function of the request."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comd_api.profile import resolve
from comd_api.recipe import Decoding
from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_api.stages import phases_of
from comd_trainer.context import PhaseContext
from comd_trainer.generation.base import Reply, Request
from comd_trainer.keys import phase_key
from comd_trainer.phases import phase_module
from comd_trainer.store.artifacts import Artifact, publish
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import open_store

Script = Callable[[Request, Decoding], str]


class StoppedError(Exception):
    """What a test raises in the middle of a phase."""


@dataclass
class ScriptedModel:
    script: Script
    asked: list[Request]
    batch: int = 3
    limit: int | None = None
    """Calls after which the process dies, as it were."""

    def plan(self, requests: Sequence[Request], _: Decoding) -> list[list[Request]]:
        return [list(requests[start : start + self.batch]) for start in range(0, len(requests), self.batch)]

    def generate(self, requests: Sequence[Request], decoding: Decoding, on_done: Callable[[list[Reply]], None]) -> None:
        for batch in self.plan(requests, decoding):
            if self.limit is not None and len(self.asked) + len(batch) > self.limit:
                raise StoppedError
            self.asked += batch
            on_done([Reply(key=each.key, text=self.script(each, decoding), finish="stop") for each in batch])


@dataclass
class World:
    """One run's folder, from which any phase of any round can be run."""

    root: Path
    spec: RunSpec
    scripts: dict[str, Script]
    """By role: teacher, student, assessor, augmentor."""
    asked: dict[str, list[Request]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def config(self, round_: int) -> StageConfig:
        stage = f"round-{round_}" if round_ else "pretrain"
        return StageConfig(
            namespace="team",
            run="trial",
            stage=stage,
            round=round_,
            last_round=round_ == self.spec.rounds.count,
            phases=phases_of(self.spec, stage),
            spec=self.spec,
        )

    def context(self, config: StageConfig, artifacts: dict[str, Artifact], folder: Path) -> PhaseContext:
        storage = self.spec.storage
        assert storage is not None
        store = open_store(storage.uri, storage.s3)
        for name in ("out", "scratch"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        return PhaseContext(
            config=config,
            store=store,
            sources=Sources(storage, store, self.root / "node"),
            artifacts=artifacts,
            fingerprints=self.fingerprints,
            out=folder / "out",
            scratch=folder / "scratch",
            partial=f"partial/{folder.name}",
        )

    def run(self, phase: str, round_: int, artifacts: dict[str, Artifact]) -> Artifact:
        """Runs one phase as the supervisor would, and publishes what it left."""
        config = self.config(round_)
        module = phase_module(phase)  # type: ignore[arg-type]
        given = {name: artifacts[name] for name in module.INPUTS if name in artifacts}
        digests = {name: artifact.digest for name, artifact in given.items()}
        key = phase_key(phase=phase, recipe=module.recipe(config, self.fingerprints), inputs=digests)  # type: ignore[arg-type]
        folder = self.root / f"{phase}-{round_}-{key[:8]}"
        ctx = self.context(config, given, folder)
        module.run(ctx)
        meta_file = folder / "scratch" / "meta.json"
        meta = json.loads(meta_file.read_text()) if meta_file.exists() else {}
        return publish(
            ctx.store,
            prefix=f"{phase}/{round_}/{key[:16]}",
            kind=phase,
            key=key,
            folder=ctx.out,
            meta=meta,
            cache_dir=self.root / "node",
        )

    def tuned(self, name: str) -> Artifact:
        """A stand-in for a tuned student: its digest is its name's."""
        storage = self.spec.storage
        assert storage is not None
        folder = self.root / f"tuned-{name}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"name": name}))
        store = open_store(storage.uri, storage.s3)
        return publish(
            store, prefix=f"tune/{name}", kind="tune", key=name, folder=folder, meta={}, cache_dir=self.root / "node"
        )

    def play_round(self, round_: int, pools: Artifact | None) -> dict[str, Artifact]:
        """All phases of a round but the training."""
        made: dict[str, Artifact] = {} if pools is None else {"pools": pools}
        for phase in phases_of(self.spec, f"round-{round_}"):
            made[phase] = self.tuned(f"round-{round_}") if phase == "tune" else self.run(phase, round_, made)
        return made


def rows_of(artifact: Artifact, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in artifact.path(file).read_text().splitlines()]


def paint(path: Path, *, seed: int) -> None:
    """A picture unlike that of any other seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def make_world(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    scripts: dict[str, Script],
    seed_rows: list[dict[str, Any]],
    bank_rows: list[dict[str, Any]] | None = None,
    evaluation_rows: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> World:
    """Writes the data files and patches model loading, the one thing that can't run here."""
    store = tmp_path / "store"
    data: dict[str, Any] = {"images": "images", "seed": {"instructions": "seed.jsonl"}, **changes.pop("data", {})}
    files = {"seed.jsonl": seed_rows, "bank.jsonl": bank_rows, "held-out.jsonl": evaluation_rows}
    store.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        if rows is not None:
            (store / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
            for row in rows:
                if row.get("image") and not (store / "images" / row["image"]).exists():
                    paint(store / "images" / row["image"], seed=sum(row["image"].encode()))
    if bank_rows is not None:
        data["bank"] = "bank.jsonl"
    if evaluation_rows is not None:
        data["evaluation"] = [{"name": "held-out", "items": "held-out.jsonl", **changes.pop("evaluation", {})}]
    wire = {
        "student": {"checkpoint": {"source": "models/student"}},
        "teacher": {"checkpoint": {"source": "models/teacher"}},
        "data": data,
        "storage": {"uri": store.resolve().as_uri()},
        "training": {"precision": "fp32"},
        **changes,
    }
    spec = resolve(RunSpec.model_validate(wire))
    names = ["images", "seed.jsonl", "bank.jsonl", "held-out.jsonl", "models/student", "models/teacher", "models/judge"]
    world = World(root=tmp_path, spec=spec, scripts=scripts)
    world.fingerprints = {name: f"sha256:{index:064x}" for index, name in enumerate(names, start=1)}

    def open_model(*_: Any, role: str, **__: Any) -> ScriptedModel:
        return ScriptedModel(scripts[role], world.asked.setdefault(role, []), limit=world.limits.get(role))

    import comd_trainer.generation.calls as calls

    assert isinstance(calls, ModuleType)
    monkeypatch.setattr(calls, "open_model", open_model)
    return world
