"""What the operator fills into `spec.storage.s3`, in an option: a JSON object of that type, as charts write it (`toJson`)."""

import json

from pydantic import ValidationError

from comd_api.exit_codes import UserError
from comd_api.run import S3Options

EXAMPLE = '{"addressingStyle": "Path", "caBundle": {"configMapKeyRef": {"name": "authorities", "key": "ca.crt"}}}'
ELSEWHERE = {"endpoint": "--storage-endpoint", "region": "--storage-region", "secretRef": "--storage-secret"}
"""Fields that have an option of their own."""


def read_s3(text: str, *, option: str) -> S3Options:
    """Raises UserError: one sentence that names the option, the field, and what would be right."""
    if not text.strip():
        return S3Options()
    from comd_operator.validation.rules import broken_rules  # cel-python takes a moment to import
    from comd_operator.validation.sentences import sentence

    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{option}: no JSON ({error}); right would be {EXAMPLE}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{option}: {text} is not an object with fields; right would be {EXAMPLE}")
    for name, own in ELSEWHERE.items():
        if name in fields:
            raise UserError(f"{option}.{name}: has an option of its own; give it by {own}")
    try:
        options = S3Options.model_validate(fields, by_alias=True, by_name=False)
    except ValidationError as error:
        raise UserError(f"{option}.{sentence(error.errors(include_url=False)[0], S3Options)}") from None
    for problem in broken_rules(options):
        raise UserError(f"{option}: {problem}")
    return options
