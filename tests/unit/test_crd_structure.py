"""The CustomResourceDefinition: the file on disk is the generated one, and it keeps the API server's rules for structural schemas."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from comd_api.base import ApiModel
from comd_api.crd import MAX_CRD_BYTES, run_crd, schedule_crd, structural_schema
from comd_api.run import DistillationRun
from comd_operator.cli.crds import FOLDERS, crd_files, write_crds

ROOT = Path(__file__).parents[2]
VERSION = run_crd()["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


NODES = list(nodes(SCHEMA))
SCHEDULE = schedule_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
OF_SCHEDULES = [(path, node) for path, node in nodes(SCHEDULE) if not path.startswith(".spec.runTemplate.spec.")]


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_the_files_on_disk_are_the_generated_ones(folder: Path) -> None:
    for name, text in crd_files().items():
        assert (ROOT / folder / name).read_text(encoding="utf-8") == text, "run `make crds`"
    assert sorted(path.name for path in (ROOT / folder).glob("*.yaml")) == sorted(crd_files())


def test_it_stays_small() -> None:
    for name, text in crd_files().items():
        assert len(text.encode()) < MAX_CRD_BYTES, name


def test_write_crds_makes_the_folder(tmp_path: Path) -> None:
    runs, schedules = write_crds(tmp_path / "new")
    assert yaml.safe_load(runs.read_text()) == run_crd()
    assert yaml.safe_load(schedules.read_text()) == schedule_crd()


def test_names_columns_and_subresource() -> None:
    names = run_crd()["spec"]["names"]
    assert names["shortNames"] == ["drun"]
    assert names["categories"] == ["comd"]
    assert VERSION["subresources"] == {"status": {}}
    columns = VERSION["additionalPrinterColumns"]
    assert [column["name"] for column in columns if not column.get("priority")] == [
        "Phase",
        "Stage",
        "Round",
        "Score",
        "Age",
    ]
    for column in columns:
        if "[?" in column["jsonPath"]:
            continue
        node = SCHEMA
        for name in column["jsonPath"].strip(".").split("."):
            node = node["properties"].get(name, {}) if "properties" in node else {}
        assert node.get("type") == column["type"] or column["jsonPath"].startswith(".metadata")


def test_the_root_says_of_metadata_only_that_it_is_there() -> None:
    assert SCHEMA["properties"]["metadata"] == {"type": "object"}
    assert SCHEMA["required"] == ["spec"]


@pytest.mark.parametrize(
    ("path", "node"),
    [*NODES, *OF_SCHEDULES],
    ids=[*(path or "root" for path, _ in NODES), *(f"schedule{path}" for path, _ in OF_SCHEDULES)],
)
def test_every_node_is_structural_and_bounded(path: str, node: dict[str, Any]) -> None:
    allowed = {
        "additionalProperties", "default", "description", "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "items",
        "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minimum", "pattern", "properties",
        "required", "type",
    }  # fmt: skip
    assert {key for key in node if not key.startswith("x-kubernetes-")} <= allowed
    if node.get("x-kubernetes-int-or-string"):
        assert "maxLength" in node
        return
    assert node["type"] in ("object", "array", "string", "integer", "number", "boolean")
    for bound in ("exclusiveMinimum", "exclusiveMaximum"):
        assert isinstance(node.get(bound, True), bool)
    if node["type"] == "array":
        assert "x-kubernetes-list-type" in node
        assert "maxItems" in node, "CEL's cost is charged for the longest list"
        for key in node.get("x-kubernetes-list-map-keys", []):
            assert key in node["items"]["required"]
    if node["type"] == "string" and path not in (".apiVersion", ".kind"):
        assert "maxLength" in node or "enum" in node, "CEL's cost is charged for the longest string"
    if "additionalProperties" in node:
        assert "maxProperties" in node, "CEL's cost is charged for the largest map"
    elif node["type"] == "object" and path != ".metadata" and not node.get("x-kubernetes-preserve-unknown-fields"):
        assert node["properties"]
        assert set(node.get("required", [])) <= set(node["properties"])
        for name, field in node["properties"].items():
            assert not ("default" in field and name in node.get("required", []))


def test_every_field_of_the_spec_is_described() -> None:
    """Numbers whose names say it all need no words; objects and lists do."""
    bare = [
        path
        for path, node in NODES
        if path.startswith(".spec.") and node.get("type") == "array" and "description" not in node
    ]
    assert set(bare) <= {".spec.data.evaluation", ".spec.training.trainable", ".spec.pretraining.trainable"}


def apply_defaults(schema: dict[str, Any], value: Any) -> Any:
    """Server-side defaulting: a missing field gets its default, then the defaults within it."""
    if isinstance(value, list):
        return [apply_defaults(schema["items"], entry) for entry in value]
    if isinstance(value, dict) and "additionalProperties" in schema:
        return value
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    fields = schema["properties"]
    filled = {**{name: field["default"] for name, field in fields.items() if "default" in field}, **value}
    return {name: apply_defaults(fields[name], entry) if name in fields else entry for name, entry in filled.items()}


def test_the_server_s_defaults_are_ours() -> None:
    from tests.unit.rule_examples import EXAMPLES

    for example in EXAMPLES:
        there = apply_defaults(SCHEMA["properties"]["spec"], example.good["spec"])
        here = DistillationRun.model_validate(example.good, by_alias=True, by_name=False).to_wire()["spec"]
        assert there == here


def test_a_default_with_rules_is_whole() -> None:
    """The API server evaluates rules on the bare default when it takes the definition; `no such key` would refuse it."""
    training = SCHEMA["properties"]["spec"]["properties"]["training"]
    assert {"batchSize", "microBatchSize"} <= set(training["default"])


def test_a_schedule_s_template_has_the_schema_of_a_run() -> None:
    template = SCHEDULE["properties"]["spec"]["properties"]["runTemplate"]["properties"]
    own = {key: value for key, value in SCHEMA["properties"]["spec"].items() if key != "description"}
    assert {key: value for key, value in template["spec"].items() if key != "description"} == own


def test_unions_are_refused() -> None:
    class Either(ApiModel):
        value: int | str = 1

    with pytest.raises(AssertionError, match="no unions"):
        structural_schema(Either)
