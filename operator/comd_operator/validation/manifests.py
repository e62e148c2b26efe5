"""From a file to runs and schedules, or to the whole list of what is wrong with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from comd_api import API_VERSION
from comd_api.base import ApiModel
from comd_api.exit_codes import UserError
from comd_api.kinds import RUN, SCHEDULE, Kind
from comd_api.run import DistillationRun
from comd_api.schedule import DistillationSchedule
from comd_operator.schedules.decide import problem as timetable_problem
from comd_operator.schedules.runs import template_run
from comd_operator.validation.documents import read_documents
from comd_operator.validation.rules import broken_rules, broken_transitions
from comd_operator.validation.sentences import sentence, shown

ModelT = TypeVar("ModelT", bound=ApiModel)
Manifest = DistillationRun | DistillationSchedule


class InvalidManifestError(UserError):
    """A manifest with one problem or more, a sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def load_manifests(path: Path) -> list[Manifest]:
    """Every document of a file. Raises InvalidManifestError, or UserError for a file that is no YAML."""
    documents = read_documents(path)
    found: list[Manifest] = []
    problems = []
    for number, document in enumerate(documents, 1):
        manifest, wrong = check_document(document)
        where = f"{path}" if len(documents) == 1 else f"{path} (document {number})"
        problems += [f"{where}: {problem}" for problem in wrong]
        if manifest is not None:
            found.append(manifest)
    if problems:
        raise InvalidManifestError(problems)
    return found


def load_manifest(path: Path) -> Manifest:
    """The one run or schedule of a file."""
    found = load_manifests(path)
    if len(found) != 1:
        raise UserError(
            f"{path}: holds {len(found)} documents; one file with one DistillationRun or DistillationSchedule is expected here"
        )
    return found[0]


def load_run(path: Path) -> DistillationRun:
    """The one run of a file; of a schedule the run that its template makes, under the schedule's name."""
    manifest = load_manifest(path)
    return manifest if isinstance(manifest, DistillationRun) else template_run(manifest)


def check_manifest(document: Any) -> tuple[DistillationRun | None, list[str]]:
    """The run, or what is wrong. `status` is dropped and nulls are taken as left out: the API server does both."""
    problem = _not_of(document, (RUN,))
    return (None, [problem]) if problem is not None else _check(document, DistillationRun)


def check_document(document: Any) -> tuple[Manifest | None, list[str]]:
    """As `check_manifest`, of a run or a schedule."""
    problem = _not_of(document, (RUN, SCHEDULE))
    if problem is not None:
        return None, [problem]
    if document["kind"] == RUN.name:
        return _check(document, DistillationRun)
    schedule, problems = _check(document, DistillationSchedule)
    if schedule is None:
        return None, problems
    wrong = timetable_problem(schedule.spec)
    return (None, [wrong]) if wrong is not None else (schedule, [])


def _not_of(document: Any, kinds: Sequence[Kind]) -> str | None:
    words = " or ".join(kind.name for kind in kinds)
    if not isinstance(document, Mapping):
        return f"the document is {shown(document)}, not an object; a {words} is expected"
    for field, wanted in (("apiVersion", [API_VERSION]), ("kind", [kind.name for kind in kinds])):
        if document.get(field) not in wanted:
            found = shown(document[field]) if field in document else "missing"
            return f"{field}: {found}; right would be {' or '.join(wanted)}"
    return None


def _check(document: Mapping[str, Any], model: type[ModelT]) -> tuple[ModelT | None, list[str]]:
    wire = _without_nulls({key: value for key, value in document.items() if key != "status"})
    try:
        manifest = model.model_validate(wire, by_alias=True, by_name=False)
    except ValidationError as error:
        return None, [sentence(detail, model) for detail in error.errors(include_url=False)]
    problems = broken_rules(manifest)
    return (None, problems) if problems else (manifest, [])


def check_update(old: DistillationRun, new: DistillationRun) -> list[str]:
    """What keeps `old` (with its status) from becoming `new`."""
    return broken_transitions(old, new)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    return value
