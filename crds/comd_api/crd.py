"""From the types to Kubernetes' structural schema, and the CustomResourceDefinition made of it. Pure: no YAML, no
files.

A structural schema (apiextensions.k8s.io/v1) is plainer than what pydantic writes: no `$ref`, no `anyOf` with null,
`exclusiveMinimum` as a boolean beside `minimum`, no `const`. Server-side defaulting goes from the outside in and never
makes an object for the sake of its fields' defaults, so that an object that may be left out has the default `{}`, which
the defaults of its own fields then fill.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from comd_api import GROUP, VERSION
from comd_api.base import ApiModel
from comd_api.kinds import RUN, SCHEDULE, Kind
from comd_api.run import DistillationRun
from comd_api.schedule import DistillationSchedule

MAX_CRD_BYTES = 150_000
"""`kubectl apply` keeps a copy of what it applied in an annotation, and annotations end at 262,144 bytes."""

_KEPT = frozenset(
    {
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "pattern",
        "required",
        "type",
    }
)

_RUN_COLUMNS: tuple[dict[str, Any], ...] = (
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Stage", "type": "string", "jsonPath": ".status.stage"},
    {"name": "Round", "type": "integer", "jsonPath": ".status.round"},
    {
        "name": "Score",
        "type": "string",
        "jsonPath": ".status.score",
        "description": "Student / teacher, on the first evaluation set.",
    },
    {"name": "Progress", "type": "string", "jsonPath": ".status.progress", "priority": 1},
    {"name": "Queue", "type": "string", "jsonPath": ".spec.queue.name", "priority": 1},
    {
        "name": "Message",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="Ready")].message',
        "priority": 1,
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
)


_SCHEDULE_COLUMNS: tuple[dict[str, Any], ...] = (
    {"name": "Schedule", "type": "string", "jsonPath": ".spec.schedules"},
    {"name": "Timezone", "type": "string", "jsonPath": ".spec.timeZone"},
    {"name": "Suspend", "type": "boolean", "jsonPath": ".spec.suspend"},
    {"name": "Active", "type": "integer", "jsonPath": ".status.numActive"},
    {"name": "Last Schedule", "type": "date", "jsonPath": ".status.lastScheduleTime"},
    {
        "name": "Next",
        "type": "string",
        "jsonPath": ".status.nextScheduleTimes[0]",
        "description": "The next slot.",
        "priority": 1,
    },
    {
        "name": "Message",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="Ready")].message',
        "priority": 1,
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
)


def run_crd() -> dict[str, Any]:
    """The CustomResourceDefinition of `DistillationRun`."""
    return _definition(RUN, DistillationRun, _RUN_COLUMNS)


def schedule_crd() -> dict[str, Any]:
    """The CustomResourceDefinition of `DistillationSchedule`."""
    return _definition(SCHEDULE, DistillationSchedule, _SCHEDULE_COLUMNS)


def _definition(kind: Kind, model: type[ApiModel], columns: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short],
                "categories": ["comd"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": list(columns),
                    "schema": {"openAPIV3Schema": _root(model)},
                }
            ],
        },
    }


def _root(model: type[ApiModel]) -> dict[str, Any]:
    """The API server checks these three itself and refuses schemas that say more of them."""
    schema = structural_schema(model)
    schema["properties"]["apiVersion"] = {"type": "string"}
    schema["properties"]["kind"] = {"type": "string"}
    schema["properties"]["metadata"] = {"type": "object"}
    schema["required"] = ["spec"]
    return schema


def structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The structural schema of a model, everything inlined, its rules at every node where it stands."""
    schema = model.model_json_schema(by_alias=True)
    return _node(schema, definitions=schema.get("$defs", {}), models=_models(model))


def _node(schema: dict[str, Any], *, definitions: dict[str, Any], models: dict[str, type[BaseModel]]) -> dict[str, Any]:
    if "$ref" in schema:
        target = definitions[schema["$ref"].rpartition("/")[2]]
        return _node(
            {**target, **{key: value for key, value in schema.items() if key != "$ref"}},
            definitions=definitions,
            models=models,
        )
    if "anyOf" in schema:
        chosen = [choice for choice in schema["anyOf"] if choice.get("type") != "null"]
        assert len(chosen) == 1, f"a structural schema has no unions: {schema}"
        rest = {
            key: value for key, value in schema.items() if key != "anyOf" and not (key == "default" and value is None)
        }
        return _node({**chosen[0], **rest}, definitions=definitions, models=models)

    node = {key: value for key, value in schema.items() if key in _KEPT or key.startswith("x-kubernetes-")}
    if "default" in schema and schema["default"] is not None:
        node["default"] = schema["default"]
    if "description" in node:
        node["description"] = " ".join(node["description"].split())
    if "const" in schema:
        node["enum"] = [schema["const"]]
    for bound, inclusive in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in schema:
            node[inclusive], node[bound] = schema[bound], True
    if "patternProperties" in schema:  # a map; a structural schema says nothing of the form of its keys
        (values,) = schema["patternProperties"].values()
        node["additionalProperties"] = _node(values, definitions=definitions, models=models)
    if "items" in node:
        node["items"] = _node(node["items"], definitions=definitions, models=models)
    if "properties" in schema:
        model = models[schema["title"]]
        node["properties"] = {
            name: _node({**field, **_factory_default(model, name)}, definitions=definitions, models=models)
            for name, field in schema["properties"].items()
        }
        rules = model.rules if issubclass(model, ApiModel) else ()
        if rules:
            node["x-kubernetes-validations"] = [{"rule": rule, "message": message} for rule, message in rules]
    return node


def _factory_default(model: type[BaseModel], alias: str) -> dict[str, Any]:
    """What a default factory gives: pydantic leaves it out of the schema. `{}` for an object, see the top of this file;
    but all of it for one with rules, because the API server evaluates them on the bare default when it is given the
    definition."""
    field = next(field for name, field in model.model_fields.items() if (field.alias or name) == alias)
    if field.default_factory is None:
        return {}
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, ApiModel):
        return {"default": value.to_wire() if value.rules else {}}
    return {"default": to_jsonable_python(value)}


def _models(root: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Every model that the root is made of, by its title in the schema, which is the name of its class."""
    found: dict[str, type[BaseModel]] = {}
    waiting = [root]
    while waiting:
        model = waiting.pop()
        if found.get(model.__name__) is model:
            continue
        assert model.__name__ not in found, f"two models are called {model.__name__}"
        found[model.__name__] = model
        for field in model.model_fields.values():
            waiting.extend(_models_in(field.annotation))
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
