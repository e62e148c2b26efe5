"""kubeconform, with schemas made here: of Kubernetes' own kinds from its OpenAPI file, of the Prometheus operator's from its
CustomResourceDefinitions. Both are read from the modules that Go has downloaded, so that nothing is asked of a network.

All are strict: a field that is not in the schema is an error, where the API server would drop it without a word.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]
PREFIX = "#/definitions/"
NAMES = "{{.ResourceKind}}{{.KindSuffix}}.json"


@dataclass(frozen=True)
class Kubeconform:
    program: Path
    folder: Path

    def problems(self, text: str) -> list[str]:
        """Of all objects in a text; a kind without a schema is one too."""
        command = [str(self.program), "-strict", "-output=json", f"-schema-location={self.folder}/{NAMES}", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        found = json.loads(done.stdout)["resources"]
        assert found or done.returncode == 0, done.stderr
        return [f"{each['kind']} {each['name']}: {each['msg']}" for each in found]


def write(folder: Path, *, kubernetes: Path, monitoring: Path) -> None:
    """A file for each kind. kubernetes, monitoring: the modules' folders."""
    definitions = json.loads((kubernetes / "api/openapi-spec/swagger.json").read_text())["definitions"]
    strict = {name: _strict(schema) for name, schema in definitions.items()}
    for name, schema in definitions.items():
        for kind in schema.get("x-kubernetes-group-version-kind", []):
            needed = {inner: strict[inner] for inner in _reached(name, definitions)}
            _write(folder, kind["group"], kind["version"], kind["kind"], {"$ref": PREFIX + name, "definitions": needed})
    for path in monitoring_crds(monitoring):
        spec = yaml.safe_load(path.read_text())["spec"]
        for version in spec["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            _write(folder, spec["group"], version["name"], spec["names"]["kind"], schema)


def monitoring_crds(module: Path) -> list[Path]:
    """Of the kinds that the chart may make."""
    folder = module / "example" / "prometheus-operator-crd"
    return [folder / f"monitoring.coreos.com_{plural}.yaml" for plural in ("podmonitors", "prometheusrules")]


def _write(folder: Path, group: str, version: str, kind: str, schema: Schema) -> None:
    suffix = f"-{group.partition('.')[0]}-{version}" if group else f"-{version}"
    (folder / f"{kind.lower()}{suffix}.json").write_text(json.dumps(schema))


def _reached(name: str, definitions: dict[str, Schema]) -> set[str]:
    """The definitions that one is made of, itself included."""
    found, waiting = {name}, [name]
    while waiting:
        for inner in set(_references(definitions[waiting.pop()])) - found:
            found.add(inner)
            waiting.append(inner)
    return found


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].removeprefix(PREFIX)
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _strict(node: Any) -> Any:
    """Without what JSON Schema does not know, and closed."""
    if isinstance(node, list):
        return [_strict(value) for value in node]
    if not isinstance(node, dict):
        return node
    if node.get("format") == "int-or-string":
        return {"type": ["integer", "string"]}
    schema: Schema = {}
    for key, value in node.items():
        if key == "properties":  # by name: one of them may be called "format"
            schema[key] = {name: _strict(inner) for name, inner in value.items()}
        elif key in ("default", "enum"):
            schema[key] = value
        elif key != "format":
            schema[key] = _strict(value)
    is_open = "additionalProperties" in node or node.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in node and not is_open:
        schema["additionalProperties"] = False
    return schema
