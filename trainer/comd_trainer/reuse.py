"""Phases that were finished before, by this run or by another one in the same store.

    <namespace>/<run>/<stage>/<phase>/<key>/    where a run looks for its own, and leaves what it makes
    cache/phases/<phase>/<digest>.json          where any run finds it; the digest is over the key and the code

Paths in entries are relative, so that a store may be moved. What is taken over is not copied: it stays where the run that made it has
left it. An entry is only a hint. What it points to is looked at before it is believed, and one that is wrong is written anew by whoever
makes the phase next.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, ValidationError

from comd_api.base import ApiModel, Digest
from comd_api.early_stop import Scored, early_stop_reason
from comd_api.exit_codes import BadDataError, ComdError, TryAgainError
from comd_api.stage import ReusedStage, StageConfig
from comd_api.stages import phases_of, round_of, stage_names
from comd_api.status import ArtifactRef, Counts, MessageText, PhaseName, Score
from comd_trainer.keys import phase_key, phase_prefix, stage_artifact_name
from comd_trainer.phases import phase_module
from comd_trainer.store.artifacts import Artifact, open_artifact, open_ref
from comd_trainer.store.stores import Store

log = logging.getLogger(__name__)

OWN_PACKAGES = ("comd_api", "comd_trainer")
LIBRARIES = (
    *("accelerate", "deepspeed", "jinja2", "numpy", "peft", "pillow", "rouge-score", "safetensors", "tokenizers"),
    *("torch", "torchvision", "transformers"),
)
"""What numbers and texts come from besides our own code; those that are not installed have no version."""
TAKEN_OVER = "taken-over.json"
"""In a run's own place for a phase: whose artifact it has taken."""


class Entry(ApiModel):
    """What the store says of a phase that was finished."""

    prefix: Annotated[str, Field(min_length=1, max_length=1024)]
    digest: Digest

    @classmethod
    def to(cls, artifact: Artifact) -> "Entry":
        return cls(prefix=artifact.prefix, digest=artifact.digest)

    def to_bytes(self) -> bytes:
        return json.dumps(self.to_wire()).encode()


@cache
def code_digest() -> str:
    """SHA-256 (hex) over the trainer's own sources and the versions of the libraries that compute. A container can't know its image's
    digest, and two images with the same code make the same."""
    content: list[object] = []
    for package in OWN_PACKAGES:
        init = import_module(package).__file__
        assert init is not None, f"{package} is a package"
        root = Path(init).parent
        for file in sorted(root.rglob("*.py")):
            name = f"{package}/{file.relative_to(root).as_posix()}"
            content.append([name, hashlib.sha256(file.read_bytes()).hexdigest()])
    content += [[library, _version(library)] for library in LIBRARIES]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def entry_path(phase: PhaseName, key: str) -> str:
    """Where the store says who has finished this phase on this content with this code."""
    digest = hashlib.sha256(f"{key}/{code_digest()}".encode()).hexdigest()
    return f"cache/phases/{phase}/{digest}.json"


def is_offered(phase: PhaseName, *, key: str, store: Store, cache_dir: Path) -> bool:
    """Whether any run would find the phase. The first that was made stays, for keys of what was made from it hold its digest."""
    return _at(entry_path(phase, key), phase=phase, key=key, store=store, cache_dir=cache_dir) is not None


def offer(artifact: Artifact, *, phase: PhaseName, key: str, store: Store) -> None:
    """Lets any run find an artifact."""
    store.write(entry_path(phase, key), Entry.to(artifact).to_bytes())


def find(
    config: StageConfig, phase: PhaseName, *, key: str, store: Store, cache_dir: Path, noted_only: bool = False
) -> Artifact | None:
    """The phase's artifact if this run has finished it or, unless `spec.reuse` is Never, another one has. What is taken over is noted, so
    that all Jobs and attempts of the run take the same, whatever is offered meanwhile. `noted_only`: nothing is taken over now that was
    not before, for what this Job goes on from is settled.

    Raises:
        CorruptArtifactError: the manifest of this run's own artifact is damaged.
        TryAgainError: the store is away.
    """
    prefix = phase_prefix(config, phase, key)
    own = open_artifact(store, prefix, cache_dir=cache_dir)
    if own is not None or config.spec.reuse == "Never":
        return own
    noted = f"{prefix}/{TAKEN_OVER}"
    found = _at(noted, phase=phase, key=key, store=store, cache_dir=cache_dir)
    if found is None and not noted_only:
        found = _at(entry_path(phase, key), phase=phase, key=key, store=store, cache_dir=cache_dir)
        if found is not None:
            store.write(noted, Entry.to(found).to_bytes())
            clear_partial(prefix, store=store)  # What an attempt has left that was stopped before the other run had it.
    return found


def lost(config: StageConfig, phase: PhaseName, *, key: str, store: Store) -> str | None:
    """What this run has taken over and does not find any more: its URI."""
    try:
        entry = Entry.model_validate_json(store.read(f"{phase_prefix(config, phase, key)}/{TAKEN_OVER}"))
    except (FileNotFoundError, ValidationError):
        return None
    return store.uri_of(entry.prefix)


def clear_partial(prefix: str, *, store: Store) -> None:
    """Removes checkpoints and shards of a phase that is done."""
    for leftover in list(store.list(f"{prefix}/partial")):
        store.delete(leftover.path)


def _at(path: str, *, phase: PhaseName, key: str, store: Store, cache_dir: Path) -> Artifact | None:
    """The artifact that an entry names; None when there is no entry, or what it names is not, or not wholly, what was looked for."""
    try:
        entry = Entry.model_validate_json(store.read(path))
        ref = ArtifactRef(name=phase, uri=store.uri_of(entry.prefix), digest=entry.digest)
        artifact = open_ref(ref, store=store, cache_dir=cache_dir)
        if (artifact.manifest.kind, artifact.manifest.key) != (phase, key):
            raise BadDataError(f"{artifact.uri} is not of this phase and key")
        _told(artifact)
        artifact.check_files()
    except FileNotFoundError:
        return None
    except TryAgainError:
        raise
    except (ComdError, ValidationError) as error:
        log.warning("phase %s can't be taken over as %s has it: %s", phase, store.uri_of(path), error)
        return None
    return artifact


class _Told(ApiModel):
    """What a stage's result takes from a phase. The digest does not cover it."""

    counts: Counts = Field(default_factory=Counts)
    scores: list[Score] = Field(default_factory=list)
    stop: MessageText | None = None


def _told(artifact: Artifact) -> _Told:
    return _Told.model_validate({name: artifact.meta[name] for name in _Told.model_fields if name in artifact.meta})


def is_taken_over(artifact: Artifact, config: StageConfig) -> bool:
    """Whether another run has made it."""
    return not artifact.prefix.startswith(f"{config.namespace}/{config.run}/")


def account(artifacts: Mapping[PhaseName, Artifact], config: StageConfig) -> ReusedStage:
    """What the phases of a stage tell together, in their order. Answers of the teacher are added up, but for those that another run's
    teacher has made: this run's has made none of them."""
    told = {phase: _told(artifact) for phase, artifact in artifacts.items()}
    counts = Counts()
    for each in told.values():
        counts = counts.replace(**each.counts.model_dump(by_alias=False, exclude_none=True))
    if counts.teacher_answers is not None:
        own = [each for phase, each in told.items() if not is_taken_over(artifacts[phase], config)]
        counts = counts.replace(teacher_answers=sum(each.counts.teacher_answers or 0 for each in own))
    return ReusedStage(
        name=config.stage,
        artifacts=[
            artifact.ref(name)
            for phase, artifact in artifacts.items()
            if (name := stage_artifact_name(phase)) is not None
        ],
        counts=counts if counts != Counts() else None,
        scores=[score for each in told.values() for score in each.scores],
        stop=next((each.stop for each in reversed(told.values()) if each.stop), None),
    )


class Finished(NamedTuple):
    """A stage of which every phase is there."""

    told: ReusedStage
    made: Mapping[PhaseName, Artifact]
    """Its phases, in order."""
    given: Mapping[str, Artifact]
    """What it began with."""


def at_stage(config: StageConfig, stage: str) -> StageConfig:
    """The same run, further on."""
    number = round_of(stage)
    return config.replace(
        stage=stage,
        round=number,
        last_round=number == config.spec.rounds.count,
        phases=phases_of(config.spec, stage),
        inputs=[],
    )


def finished_stages(
    config: StageConfig, preflight: Artifact, *, start: Mapping[str, Artifact], store: Store, cache_dir: Path
) -> list[Finished]:
    """The stages after `preflight`, in order, of which every phase is there already; none behind the one after which the rounds end
    early. Whether a student is promoted is each run's own business. `config`: with its sources pinned. `start`: what round 1 begins with.

    Raises:
        TryAgainError: the store is away.
    """
    found: list[Finished] = []
    handed_over = dict(start)
    stages = [name for name in stage_names(config.spec)[1:] if name != "promote"]
    for stage in stages if config.spec.reuse == "Always" else []:
        at = at_stage(config, stage)
        if any(each.told.stop for each in found) or early_stop_reason(
            config.spec, [Scored(each.told.name, each.told.scores) for each in found]
        ):
            break
        try:
            made = _finished_phases(at, preflight, handed_over, store=store, cache_dir=cache_dir)
            if len(made) < len(at.phases):
                break
            found.append(Finished(account(made, at), made, dict(handed_over)))
        except TryAgainError:
            raise
        except (ComdError, ValidationError) as error:
            log.warning("stage %s is run, for what is there of it can't be taken: %s", stage, error)
            break
        for phase, artifact in made.items():
            name = stage_artifact_name(phase)
            if name is not None:
                handed_over[name] = artifact
    return found


def _finished_phases(
    config: StageConfig, preflight: Artifact, handed_over: Mapping[str, Artifact], *, store: Store, cache_dir: Path
) -> dict[PhaseName, Artifact]:
    """Up to the first that is not there: the keys of those after it are not known."""
    made: dict[PhaseName, Artifact] = {}
    for phase in config.phases:
        inputs = dict(handed_over) | {str(name): artifact for name, artifact in made.items()}
        key, _ = key_of(config, phase, fingerprints=preflight.meta["fingerprints"], inputs=inputs)
        artifact = find(config, phase, key=key, store=store, cache_dir=cache_dir)
        if artifact is None:
            break
        if not is_taken_over(artifact, config):
            artifact.check_files()
        made[phase] = artifact
    return made


def key_of(
    config: StageConfig, phase: PhaseName, *, fingerprints: Mapping[str, str], inputs: Mapping[str, Artifact]
) -> tuple[str, dict[str, object]]:
    """Key of a phase, and what it is made from: seeds, decoding, models, pools (method section 12, row 30). `inputs`: at least those
    that the phase reads."""
    module = phase_module(phase)
    recipe = module.recipe(config, fingerprints)
    digests = {name: inputs[name].digest for name in module.INPUTS if name in inputs}
    return phase_key(phase=phase, recipe=recipe, inputs=digests), {"recipe": recipe, "inputs": digests}
