"""The contract's rules, defaults and transitions as the real API server has them: the tables that are evaluated offline too."""

import copy
from typing import Any

import pytest

from comd_operator.runtime.api import ApiError
from comd_operator.validation import check_manifest
from tests.api.world import World
from tests.unit.rule_examples import ALLOWED, EXAMPLES, REFUSED, Example, Transition, manifest


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.message for example in EXAMPLES])
async def test_a_rule_is_kept_and_broken(world: World, example: Example) -> None:
    accepted = await world.api.create(f"{world.runs()}?dryRun=All", example.good)
    run, problems = check_manifest(example.good)
    assert run is not None, problems
    assert accepted["spec"] == run.to_wire()["spec"], "the server fills in what we do"
    with pytest.raises(ApiError) as refused:
        await world.api.create(f"{world.runs()}?dryRun=All", example.bad)
    assert refused.value.status == 422
    _, problems = check_manifest(example.bad)
    offline = next(problem for problem in problems if problem.startswith(example.path + example.message))
    assert offline.removeprefix(example.path) in refused.value.message, "to the letter"


def _spec(change: Transition) -> dict[str, Any]:
    return copy.deepcopy(manifest(**change.changes)["spec"])


async def test_what_a_started_run_must_keep_and_what_may_change(world: World) -> None:
    made = await world.apply(manifest())
    dry_run = f"{world.runs('tiny')}?dryRun=All"
    await world.api.update(dry_run, {**made, "spec": _spec(REFUSED[0])})  # not started: taken
    status = {"status": {"startTime": "2026-01-01T00:00:00Z", "phase": "Running"}}
    kind = "application/merge-patch+json"
    started = await world.api.patch(world.runs("tiny", subresource="status"), status, content_type=kind)
    for change in REFUSED:
        with pytest.raises(ApiError) as refused:
            await world.api.update(dry_run, {**started, "spec": _spec(change)})
        assert f"spec.{change.field} can't change once the run has started" in refused.value.message, change.field
    for change in ALLOWED:
        await world.api.update(dry_run, {**started, "spec": _spec(change)})


async def test_a_typing_error_is_refused_by_name(world: World) -> None:
    with pytest.raises(ApiError) as refused:
        await world.api.create(f"{world.runs()}?fieldValidation=Strict", manifest(rounds__treshold=2))
    assert 'unknown field "spec.rounds.treshold"' in refused.value.message
