"""YAML as the API server's clients read it.

PyYAML follows YAML 1.1, kubectl's parser does not quite: it takes `2e-5` for a number (PyYAML: a string), `2026-01-01`
and `1:30` for strings (PyYAML: a date and 90), and a key that stands twice for an error (PyYAML: the last one wins).
"""

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from comd_api.exit_codes import UserError

_INT = re.compile(r"^[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"^([-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)
MAX_VALUES = 100_000
"""That all documents of a file may hold."""
_REPLACED = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")


def format_document(document: Mapping[str, Any]) -> str:
    """YAML text that reads back as `document`, with the keys in their order."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=140)


class _Dumper(yaml.SafeDumper):
    """PyYAML leaves line breaks other than \\n as they are outside of double quotes, and reads them back as spaces; and it leaves text
    without quotes that is a number to all who read YAML 1.2, such as `1e5`."""


_BREAKS = frozenset("\r\x85\u2028\u2029")
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str",
        text,
        style='"' if _BREAKS.intersection(text) or _INT.match(text) or _FLOAT.match(text) else None,
    ),
)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} stands here twice", key_node.start_mark
                )
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_REPLACED[0], _INT, list("-+0123456789"))
_Loader.add_implicit_resolver(_REPLACED[1], _FLOAT, list("-+.0123456789"))


def read_documents(path: Path) -> list[Any]:
    """The YAML documents of a file, empty ones left out.

    Raises UserError that names the file, and for a syntax error the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
    documents = parse_documents(text, name=str(path))
    if not documents:
        raise UserError(f"{path}: holds no YAML document; a DistillationRun or DistillationSchedule is expected")
    return documents


def parse_documents(text: str, *, name: str) -> list[Any]:
    """As `read_documents`, of a text; `name` stands in error messages."""
    try:
        documents = [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise UserError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{name}: not valid YAML: {error}") from None
    if not _is_small(documents):
        raise UserError(
            f"{name}: holds more than {MAX_VALUES:,} values when its anchors are written out; a manifest needs a few hundred"
        )
    return documents


def _is_small(value: Any) -> bool:
    """Whether whoever goes through all of it comes to an end: a few anchors of anchors make billions of values, and one that holds
    itself makes no end."""
    waiting, seen = [value], 0
    while waiting:
        entry = waiting.pop()
        seen += 1
        if seen > MAX_VALUES:
            return False
        if isinstance(entry, Mapping):
            waiting += entry.values()
        elif isinstance(entry, list):
            waiting += entry
    return True
