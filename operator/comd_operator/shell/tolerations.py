"""Tolerations in an option: a JSON list of what stands in a pod's spec, as charts write it (`toJson`)."""

import json
import re

from pydantic import ValidationError

from comd_api.exit_codes import UserError
from comd_api.pods import LABEL_KEY_FORM, Toleration

EXAMPLE = '[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]'
MOST = 32
"""As many as a run may have itself."""


def read_tolerations(text: str, *, option: str) -> tuple[Toleration, ...]:
    """Raises UserError: one sentence that names the option, the entry, and what would be right. The API server would refuse every
    Job for what is refused here."""
    if not text.strip():
        return ()
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{option}: no JSON ({error}); right would be {EXAMPLE}") from None
    if not isinstance(entries, list):
        raise UserError(f"{option}: {text} is not a list; right would be {EXAMPLE}")
    if len(entries) > MOST:
        raise UserError(f"{option}: {len(entries)} entries are more than {MOST}")
    return tuple(_read(entry, where=f"{option}[{number}]") for number, entry in enumerate(entries))


def _read(entry: object, *, where: str) -> Toleration:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: {json.dumps(entry)} is not an object with fields; right would be {EXAMPLE[1:-1]}")
    try:
        toleration = Toleration.model_validate(entry, by_alias=True, by_name=False)
    except ValidationError as error:
        from comd_operator.validation.sentences import sentence

        raise UserError(f"{where}.{sentence(error.errors(include_url=False)[0], Toleration)}") from None
    problem = _problem(toleration)
    if problem is not None:
        raise UserError(f"{where}: {problem}")
    return toleration


def _problem(toleration: Toleration) -> str | None:
    """What Kubernetes asks of the fields together."""
    if not toleration.key and toleration.operator != "Exists":
        return "key is missing; without one, which stands for every taint, operator must be Exists"
    if toleration.key and not re.fullmatch(LABEL_KEY_FORM, toleration.key):
        return f"key: {toleration.key!r} is no key of a taint, such as nvidia.com/gpu"
    if toleration.value and toleration.operator == "Exists":
        return f"value: {toleration.value!r} is not compared when operator is Exists; leave one of them out"
    if toleration.toleration_seconds is not None and toleration.effect != "NoExecute":
        return "tolerationSeconds has a meaning with effect NoExecute alone; leave it out"
    return None
