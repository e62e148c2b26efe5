"""Every rule of the contract has an example that keeps it and one that breaks it, and the offline verdict is what the rule says."""

import pytest

from comd_api.base import Rule
from comd_api.crd import run_crd
from comd_api.run import DistillationRun
from comd_operator.validation import check_manifest, check_update
from comd_operator.validation.rules import _program, broken_rules, holds, is_transition
from tests.unit.rule_examples import ALLOWED, EXAMPLES, REFUSED, Example, Transition, manifest

STARTED = {"startTime": "2026-01-01T00:00:00Z"}


def all_rules() -> dict[str, str]:
    """Rule → message, of the whole schema."""
    found: dict[str, str] = {}
    waiting = [run_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]]
    while waiting:
        node = waiting.pop()
        found |= {entry["rule"]: entry["message"] for entry in node.get("x-kubernetes-validations", [])}
        waiting += [*node.get("properties", {}).values(), *([node["items"]] if "items" in node else [])]
    return found


def test_every_rule_has_an_example() -> None:
    for rule, message in all_rules().items():
        if is_transition(Rule(rule, message)):
            assert any(message.startswith(f"spec.{case.field} can't change") for case in REFUSED), message
        else:
            assert sum(message.startswith(example.message) for example in EXAMPLES) == 1, message


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.path + example.message)
def test_rules(example: Example) -> None:
    run, problems = check_manifest(example.good)
    assert problems == []
    assert run is not None
    run, problems = check_manifest(example.bad)
    assert run is None
    assert any(problem.startswith(example.path + example.message) for problem in problems), problems


def parse(status: dict[str, str] | None = None, **changes: object) -> DistillationRun:
    return DistillationRun.model_validate({**manifest(**changes), "status": status}, by_alias=True, by_name=False)


def kept(field: str) -> str:
    return f"spec.{field} can't change once the run has started; delete the run and apply it again, or give it another name"


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.field)
def test_a_started_run_keeps(case: Transition) -> None:
    problems = check_update(parse(STARTED), parse(**case.changes))
    assert kept(case.field) in problems
    assert check_update(parse(), parse(**case.changes)) == [], "before the start anything may change"


@pytest.mark.parametrize("case", ALLOWED, ids=lambda case: case.field)
def test_a_started_run_may_change(case: Transition) -> None:
    assert check_update(parse(STARTED), parse(**case.changes)) == []


def test_every_field_of_the_spec_is_either_kept_or_may_change() -> None:
    fields = {field.alias or name for name, field in type(parse().spec).model_fields.items()}
    assert {case.field for case in (*REFUSED, *ALLOWED)} == fields


def test_an_optional_field_that_is_taken_away_is_a_change() -> None:
    with_it = parse(STARTED, pretraining={}, data__pretraining="captions.jsonl")
    without = parse(data__pretraining="captions.jsonl")
    assert check_update(with_it, without) == [kept("pretraining")]


def test_a_rule_that_can_t_be_evaluated_does_not_hold() -> None:
    assert not holds(Rule("self.nowhere > 3", ""), {"here": 1})


def test_rules_are_checked_at_every_node() -> None:
    broken = parse(augmentor={"model": {}}, assessor={"model": {}})
    problems = broken_rules(broken)
    assert "spec.augmentor.model: set exactly one of checkpoint and endpoint" in problems
    assert "spec.assessor.model: set exactly one of checkpoint and endpoint" in problems


def test_rules_are_compiled_once_in_a_process() -> None:
    check_manifest(manifest())
    compiled = _program.cache_info().misses
    check_manifest(manifest(seed=1))
    assert _program.cache_info().misses == compiled
