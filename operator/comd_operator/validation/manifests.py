"""From a file to runs, or to the whole list of what is wrong with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from comd_api import API_VERSION
from comd_api.exit_codes import UserError
from comd_api.run import DistillationRun
from comd_operator.validation.documents import read_documents
from comd_operator.validation.rules import broken_rules, broken_transitions
from comd_operator.validation.sentences import sentence, shown


class InvalidManifestError(UserError):
    """A manifest with one problem or more, a sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def load_runs(path: Path) -> list[DistillationRun]:
    """Every document of a file. Raises InvalidManifestError, or UserError for a file that is no YAML."""
    documents = read_documents(path)
    runs, problems = [], []
    for number, document in enumerate(documents, 1):
        run, found = check_manifest(document)
        where = f"{path}" if len(documents) == 1 else f"{path} (document {number})"
        problems += [f"{where}: {problem}" for problem in found]
        if run is not None:
            runs.append(run)
    if problems:
        raise InvalidManifestError(problems)
    return runs


def load_run(path: Path) -> DistillationRun:
    """The one run of a file."""
    runs = load_runs(path)
    if len(runs) != 1:
        raise UserError(f"{path}: holds {len(runs)} runs; one file with one DistillationRun is expected here")
    return runs[0]


def check_manifest(document: Any) -> tuple[DistillationRun | None, list[str]]:
    """The run, or what is wrong. `status` is dropped and nulls are taken as left out: the API server does both."""
    if not isinstance(document, Mapping):
        return None, [f"the document is {shown(document)}, not an object; a DistillationRun is expected"]
    for field, wanted in (("apiVersion", API_VERSION), ("kind", "DistillationRun")):
        if document.get(field) != wanted:
            found = shown(document[field]) if field in document else "missing"
            return None, [f"{field}: {found}; right would be {wanted}"]
    wire = _without_nulls({key: value for key, value in document.items() if key != "status"})
    try:
        run = DistillationRun.model_validate(wire, by_alias=True, by_name=False)
    except ValidationError as error:
        return None, [sentence(detail, DistillationRun) for detail in error.errors(include_url=False)]
    problems = broken_rules(run)
    return (None, problems) if problems else (run, [])


def check_update(old: DistillationRun, new: DistillationRun) -> list[str]:
    """What keeps `old` (with its status) from becoming `new`."""
    return broken_transitions(old, new)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    return value
