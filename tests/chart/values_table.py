"""The table of values in the chart's README, made of values.yaml and its comments. `python -m tests.chart.values_table` writes it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "charts" / "comd-operator"
README = CHART / "README.md"
BEGIN, END = "<!-- values: made of values.yaml -->\n", "<!-- end of values -->\n"
_KEY = re.compile(r"^( *)([A-Za-z]\w*):")


def comments() -> dict[str, str]:
    """What stands above each key, by the key's path."""
    found: dict[str, str] = {}
    above: list[str] = []
    parents: list[str] = []
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.lstrip("# "))
            continue
        key = _KEY.match(line)
        if key is not None:
            parents = [*parents[: len(key[1]) // 2], key[2]]
            if above:
                found[".".join(parents)] = " ".join(above)
        above = []
    return found


def rows() -> Iterator[tuple[str, Any, str]]:
    """Path, default and comment of each value. An object whose fields have no comments of their own is one value.

    Raises:
        KeyError: a value has no comment.
    """
    said = comments()

    def walk(value: Any, path: str) -> Iterator[tuple[str, Any, str]]:
        is_group = isinstance(value, dict) and (path not in said or any(f"{path}.{name}" in said for name in value))
        if not is_group:
            yield path, value, said[path]
            return
        for name, inner in value.items():
            yield from walk(inner, f"{path}.{name}")

    for name, value in yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")).items():
        yield from walk(value, name)


def table() -> str:
    lines = ["| value | default | what |", "| --- | --- | --- |"]
    lines += [f"| `{path}` | `{json.dumps(value)}` | {_escaped(text)} |" for path, value, text in rows()]
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """The README with the table as it should be."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
