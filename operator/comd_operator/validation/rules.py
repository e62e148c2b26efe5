"""The contract's CEL rules, evaluated offline by cel-python as the API server evaluates them: on the defaulted object,
at the node of each model."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import celpy
from celpy.adapter import json_to_cel
from celpy.evaluation import CELEvalError

from comd_api.base import ApiModel, Rule
from comd_operator.validation.sentences import Path, path_text


def broken_rules(root: ApiModel) -> list[str]:
    """A sentence for each rule that an object breaks. Transition rules are not asked."""
    return [
        _with_path(rule.message, path, node)
        for path, node in _nodes(root, ())
        for rule in node.rules
        if not is_transition(rule) and not holds(rule, node.to_wire())
    ]


def broken_transitions(old: ApiModel, new: ApiModel) -> list[str]:
    """A sentence for each transition rule that the step from `old` to `new` breaks. Objects in lists are not compared,
    as on the API server, which can't tell which entry became which."""
    before = dict(_nodes(old, ()))
    return [
        _with_path(rule.message, path, node)
        for path, node in _nodes(new, ())
        if path in before and not any(isinstance(part, int) for part in path)
        for rule in node.rules
        if is_transition(rule) and not holds(rule, node.to_wire(), before[path].to_wire())
    ]


def is_transition(rule: Rule) -> bool:
    return "oldSelf" in rule.rule


def holds(rule: Rule, value: Mapping[str, Any], old_value: Mapping[str, Any] | None = None) -> bool:
    """Whether a rule holds for a node in wire form. A rule that can't be evaluated does not hold, as on the API
    server."""
    names = {"self": json_to_cel(dict(value))}
    if old_value is not None:
        names["oldSelf"] = json_to_cel(dict(old_value))
    try:
        return bool(_program(rule.rule).evaluate(names))
    except CELEvalError:
        return False


@cache
def _environment() -> celpy.Environment:
    return celpy.Environment()


@cache
def _program(expression: str) -> celpy.Runner:
    """Compiled once in a process."""
    return _environment().program(_environment().compile(expression))


def _nodes(node: ApiModel, path: Path) -> Iterator[tuple[Path, ApiModel]]:
    """The object and every object in it, with its path as the manifest spells it."""
    yield path, node
    for name, field in type(node).model_fields.items():
        value, below = getattr(node, name), (*path, field.alias or name)
        if isinstance(value, ApiModel):
            yield from _nodes(value, below)
        elif isinstance(value, list):
            for index, entry in enumerate(value):
                if isinstance(entry, ApiModel):
                    yield from _nodes(entry, (*below, index))


def _with_path(message: str, path: Path, node: ApiModel) -> str:
    """Messages that begin with a field of their node (`batchSize must be …`) get the node's path in front of it, others
    get it as a prefix."""
    if not path:
        return message
    first = message.split(maxsplit=1)[0].partition(".")[0]
    aliases = {field.alias or name for name, field in type(node).model_fields.items()}
    return f"{path_text(path)}.{message}" if first in aliases else f"{path_text(path)}: {message}"
