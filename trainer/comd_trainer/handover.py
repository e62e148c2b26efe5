"""What runs leave to each other: what `preflight` finds there already, and what a stage leaves when it ends."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from comd_api.stage import ReusedStage, StageConfig
from comd_api.stages import needs_no_gpu, phases_of
from comd_api.status import PhaseName
from comd_trainer.outcome import Facts, Outcome, ends_early, leave_outcome, open_outcome, outcome_of, read_outcome
from comd_trainer.preflight import pinned
from comd_trainer.preflight.start import open_started
from comd_trainer.reuse import account, at_stage, finished_stages
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
        leave_outcome(outcome, spec=config.spec, store=store, namespace=config.namespace, run=config.run)
        return Found({"student": student}, [])
    start = open_started(meta["start"], store=store, cache_dir=cache_dir)
    pinned_config = config.replace(spec=pinned(config.spec, meta))
    finished = finished_stages(pinned_config, preflight, start=start, store=store, cache_dir=cache_dir)
    for each in finished:
        at = at_stage(pinned_config, each.told.name)
        leave(at, preflight, made=each.made, given=each.given, store=store, cache_dir=cache_dir)
    return Found(start, [each.told for each in finished])


def leave(
    config: StageConfig,
    preflight: Artifact,
    *,
    made: Mapping[PhaseName, Artifact],
    given: Mapping[str, Artifact],
    store: Store,
    cache_dir: Path,
) -> None:
    """For other runs to start from, when all phases of the stage are done. given: what the stage was given."""
    if needs_no_gpu(config.stage) or config.phases[-1] != phases_of(config.spec, config.stage)[-1]:
        return
    if "facts" not in preflight.meta:
        return  # The run was begun by a trainer that knew of no outcomes.
    outcome = outcome_of(
        config.stage,
        spec=config.spec,
        made=made,
        given=given,
        facts=Facts.model_validate(preflight.meta["facts"]),
        before=read_outcome(store, namespace=config.namespace, run=config.run, strict=False),
        stop=account(made, config).stop,
    )
    if outcome is None:
        return
    if not outcome.finished and ends_early(outcome, spec=config.spec, store=store, cache_dir=cache_dir):
        outcome = outcome.replace(finished=True)
    leave_outcome(outcome, spec=config.spec, store=store, namespace=config.namespace, run=config.run)
