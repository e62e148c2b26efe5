"""Health and actions of examples/gitops/argocd/argocd-cm.yaml, run by Argo CD's interpreter on every situation there is."""

from copy import deepcopy
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gitops.judge import Judge
from tests.gitops.situations import SITUATIONS, UNSEEN, Situation

CONFIG: dict[str, str] = yaml.safe_load(
    (Path(__file__).parents[2] / "examples/gitops/argocd/argocd-cm.yaml").read_text()
)["data"]
TYPES = ("Ready", "Reconciling", "Stalled", "Suspended")
"""What health and kstatus look at."""
KSTATUS = {"InProgress": ("Progressing", "Suspended"), "Failed": ("Degraded",), "Current": ("Healthy",)}


def script(what: str, wire: dict[str, Any]) -> str:
    group = wire["apiVersion"].partition("/")[0]
    return CONFIG[f"resource.customizations.{what}.{group}_{wire['kind']}"]


def health(judge: Judge, wire: dict[str, Any]) -> tuple[str, str]:
    told = judge.run(script("health", wire), wire)
    return told["status"], told["message"]


def actions(judge: Judge, wire: dict[str, Any]) -> list[str]:
    found = judge.run(yaml.safe_load(script("actions", wire))["discovery.lua"], wire)
    return list(found)


def act(judge: Judge, action: str, wire: dict[str, Any]) -> dict[str, Any]:
    definitions = yaml.safe_load(script("actions", wire))["definitions"]
    [chosen] = [entry["action.lua"] for entry in definitions if entry["name"] == action]
    changed: dict[str, Any] = judge.run(chosen, wire)
    return changed


def without_empty(value: Any) -> Any:
    """Lua has one kind of empty table; Argo CD puts back what it was."""
    if isinstance(value, dict):
        return {key: without_empty(entry) for key, entry in value.items() if entry not in ({}, [], None)}
    return [without_empty(entry) for entry in value] if isinstance(value, list) else value


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_health(judge: Judge, situation: Situation) -> None:
    """It says what kstatus says, with the words of the condition Ready."""
    status, message = health(judge, situation.wire)
    assert status == situation.argo
    assert status in KSTATUS[situation.kstatus]
    ready = next(found for found in situation.wire["status"]["conditions"] if found["type"] == "Ready")
    assert message == f"{ready['reason']}: {ready['message']}"


def _joined(types: set[str]) -> str:
    return "-".join(sorted(types)) or "none"


@pytest.mark.parametrize(
    "true", [set(chosen) for size in range(5) for chosen in combinations(TYPES, size)], ids=_joined
)
def test_health_is_kstatus_in_other_words(judge: Judge, true: set[str]) -> None:
    """Whatever conditions are true together, also those that the operator never has so today."""
    wire = deepcopy(SITUATIONS[0].wire)
    for condition in wire["status"]["conditions"]:
        condition["status"] = "True" if condition["type"] in true else "False"
    assert health(judge, wire)[0] in KSTATUS[judge.kstatus(wire)]


@pytest.mark.parametrize("number", range(len(UNSEEN)))
def test_what_nobody_has_looked_at_is_never_healthy(judge: Judge, number: int) -> None:
    assert health(judge, UNSEEN[number])[0] == "Progressing"


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_a_change_is_progressing_until_it_was_looked_at(judge: Judge, situation: Situation) -> None:
    wire = deepcopy(situation.wire)
    wire["metadata"]["generation"] += 1
    assert health(judge, wire) == ("Progressing", "the operator has not looked at the last change yet")


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_actions(judge: Judge, situation: Situation) -> None:
    """Suspend what goes on, resume what is suspended, nothing that is over; and nothing else changes by it."""
    wire, suspend = situation.wire, situation.wire["spec"]["suspend"]
    over = situation.phase in ("Succeeded", "Failed")
    offered = actions(judge, wire)
    assert offered == ([] if over else ["resume"] if suspend else ["suspend"])
    for action in offered:
        expected = deepcopy(wire)
        expected["spec"]["suspend"] = not suspend
        assert without_empty(act(judge, action, wire)) == without_empty(expected)


def test_an_action_of_what_has_no_status_yet(judge: Judge) -> None:
    assert [actions(judge, wire) for wire in UNSEEN] == [["resume"], ["suspend"], ["suspend"]]


def test_every_action_is_offered_somewhere(judge: Judge) -> None:
    for kind in ("DistillationRun", "DistillationSchedule"):
        wires = [one.wire for one in SITUATIONS if one.wire["kind"] == kind]
        defined = yaml.safe_load(script("actions", wires[0]))["definitions"]
        offered = {action for wire in wires for action in actions(judge, wire)}
        assert {entry["name"] for entry in defined} == offered
