"""What runs leave to each other: what `preflight` finds there already, and what a stage leaves when it ends."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from comd_api.stage import ReusedStage, StageConfig
from comd_api.stages import needs_no_gpu, phases_of
from comd_api.status import PhaseName
from comd_trainer.outcome import Facts, Outcome, open_outcome, outcome_of, write_outcome
from comd_trainer.preflight import pinned
from comd_trainer.preflight.start import open_started
from comd_trainer.reuse import finished_stages
from comd_trainer.store.artifacts import Artifact
from comd_trainer.store.stores import Store


class Found(NamedTuple):
    start: Mapping[str, Artifact]
    """What later stages begin with: `student` and `pools`."""
    reused: list[ReusedStage]


def look_back(config: StageConfig, preflight: Artifact, *, store: Store, cache_dir: Path) -> Found:
    """Where the run starts from, and stages that need not be run; what these have come to is this run's outcome. Of a run that has nothing
    to do, what the one that stands for it has come to."""
    meta = preflight.meta
    if "unchanged" in meta:
        outcome = Outcome.model_validate(meta["unchanged"])
        student = open_outcome(outcome, store=store, cache_dir=cache_dir).student
        write_outcome(outcome, store=store, namespace=config.namespace, run=config.run)
        return Found({"student": student}, [])
    start = open_started(meta["start"], store=store, cache_dir=cache_dir)
    pinned_config = config.replace(spec=pinned(config.spec, meta))
    finished = finished_stages(pinned_config, preflight, start=start, store=store, cache_dir=cache_dir)
    for each in finished:
        _leave(each.told.name, config, preflight, made=each.made, pools=each.pools, store=store)
    return Found(start, [each.told for each in finished])


def leave_outcome(
    config: StageConfig,
    preflight: Artifact,
    *,
    made: Mapping[PhaseName, Artifact],
    pools: Artifact | None,
    store: Store,
) -> None:
    """For other runs to start from, when all phases of the stage are done. pools: those that the stage was given."""
    if not needs_no_gpu(config.stage) and config.phases[-1] == phases_of(config.spec, config.stage)[-1]:
        _leave(config.stage, config, preflight, made=made, pools=pools, store=store)


def _leave(
    stage: str,
    config: StageConfig,
    preflight: Artifact,
    *,
    made: Mapping[PhaseName, Artifact],
    pools: Artifact | None,
    store: Store,
) -> None:
    facts = Facts.model_validate(preflight.meta["facts"])
    outcome = outcome_of(stage, made=made, pools=pools, facts=facts)
    if outcome is not None:
        write_outcome(outcome, store=store, namespace=config.namespace, run=config.run)
