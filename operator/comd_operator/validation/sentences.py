"""pydantic's errors as sentences: field path in the manifest's spelling, the value, what would be right."""

import difflib
import json
import re
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from comd_api.base import FORMS
from comd_api.pods import POD_FORMS
from comd_api.schedule import SCHEDULE_FORMS

Path = tuple[str | int, ...]

_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "model_type": "an object with fields",
    "model_attributes_type": "an object with fields",
    "dict_type": "an object with fields",
}


def sentence(error: ErrorDetails, root: type[BaseModel]) -> str:
    """One pydantic error as a sentence."""
    path: Path = error["loc"]
    parent = model_at(root, path[:-1])
    where = path_text(path)
    value = error["input"]
    limits: dict[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"{where}: unknown field; {_suggestion(str(path[-1]), parent)}"
        case "missing":
            return f"{where}: missing{_meaning(parent, path)}"
        case "greater_than" | "greater_than_equal" as kind:
            bound = limits["gt" if kind == "greater_than" else "ge"]
            needed = "must be more than" if kind == "greater_than" else "is less than"
            return f"{where}: {shown(value)} {needed} {number(bound)}{_meaning(parent, path)}"
        case "less_than" | "less_than_equal" as kind:
            bound = limits["lt" if kind == "less_than" else "le"]
            needed = "must be less than" if kind == "less_than" else "is greater than"
            return f"{where}: {shown(value)} {needed} {number(bound)}{_meaning(parent, path)}"
        case "literal_error":
            return (
                f"{where}: {shown(value)} is not known here; right would be {limits['expected'].replace(chr(39), '')}"
            )
        case "string_pattern_mismatch":
            form = {**FORMS, **POD_FORMS, **SCHEDULE_FORMS}.get(
                limits["pattern"], f"text that matches {limits['pattern']}"
            )
            return f"{where}: {shown(value)} has the wrong form; right would be {form}"
        case "string_too_long":
            return f"{where}: text of {len(value)} characters is longer than {limits['max_length']}"
        case "string_too_short":
            return f"{where}: must not be empty{_meaning(parent, path)}"
        case "too_long":
            return f"{where}: {limits['actual_length']} entries are more than {limits['max_length']}"
        case "too_short":
            least = limits["min_length"]
            return f"{where}: {limits['actual_length']} entries are fewer than {least}{_meaning(parent, path)}"
        case kind if kind in _WANTED:
            return f"{where}: {shown(value)} is not {_WANTED[kind]}{_meaning(parent, path)}"
        case _:
            return f"{where}: {shown(value)}: {error['msg']}"


def path_text(path: Path) -> str:
    """`("spec", "data", "evaluation", 0, "name")` → `spec.data.evaluation[0].name`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the document"


def model_at(root: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model whose fields stand at a path of aliases and indices; None where there is none."""
    model: type[BaseModel] | None = root
    for part in path:
        if isinstance(part, int):
            continue
        model = (
            next(
                (
                    _model_of(field.annotation)
                    for name, field in model.model_fields.items()
                    if (field.alias or name) == part
                ),
                None,
            )
            if model
            else None
        )
    return model


def shown(value: Any) -> str:
    """A value as the manifest would spell it, cut when it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def number(value: float) -> str:
    return (
        f"{value:g}"
        if isinstance(value, float) and abs(value) < 1e6
        else f"{value:,}"
        if abs(value) >= 1e6
        else str(value)
    )


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for argument in getattr(annotation, "__args__", ()) if (found := _model_of(argument))), None)


def _suggestion(name: str, model: type[BaseModel] | None) -> str:
    known = [field.alias or python_name for python_name, field in model.model_fields.items()] if model else []
    near = difflib.get_close_matches(name.lower().replace("_", ""), [alias.lower() for alias in known], n=1, cutoff=0.7)
    if near:
        return f"did you mean {next(alias for alias in known if alias.lower() == near[0])}?"
    return f"known here are {', '.join(known)}" if known else "no fields are known here"


def _meaning(parent: type[BaseModel] | None, path: Path) -> str:
    """What the contract says of the field, so that the sentence ends with what would be right."""
    if parent is None or not path:
        return ""
    name = next((part for part in reversed(path) if isinstance(part, str)), "")
    field = next(
        (field for python_name, field in parent.model_fields.items() if (field.alias or python_name) == name), None
    )
    text = field.description if field else None
    if field and not text and (model := _model_of(field.annotation)) is not None:
        text = model.__doc__ and model.__doc__.strip().partition("\n\n")[0]
    # Where the contract names its source, the manual is meant, which nobody wants to read in an error.
    words = " ".join(re.sub(r" \(method section[^)]*\)", "", text).split()).rstrip(".") if text else ""
    return f" ({words})" if words else ""
