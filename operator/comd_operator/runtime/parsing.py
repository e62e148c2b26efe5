"""From what the API server holds to the contract's types. Its schema lets through what it has no words for, such as the form of a map's
keys, and another version of the operator may have written a status that this one can't read."""

import json
import logging
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from comd_api.base import ApiModel
from comd_api.run import ObjectMeta

log = logging.getLogger(__name__)

ObjectT = TypeVar("ObjectT", bound=ApiModel)
StatusT = TypeVar("StatusT", bound=ApiModel)


class UnreadableError(Exception, Generic[StatusT]):
    """status: None when it is the status that can't be read, as one that another version has written: it is then left alone."""

    def __init__(self, message: str, *, metadata: ObjectMeta, spec: dict[str, Any], status: StatusT | None) -> None:
        super().__init__(message)
        self.metadata, self.spec, self.status = metadata, spec, status


def parse(body: bytes, kind: type[ObjectT], *, status: type[StatusT]) -> ObjectT:
    """status: the type of what is below `status`. Raises UnreadableError, with a sentence that names the field."""
    try:
        return kind.model_validate_json(body, by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = f"{'.'.join(map(str, first['loc']))}: {json.dumps(first['input'], default=str)[:80]}: {first['msg']}"
        raw = json.loads(body)
        metadata = ObjectMeta.model_validate(raw["metadata"])
        try:
            written: StatusT | None = status.model_validate(raw.get("status", {}), by_alias=True, by_name=False)
        except ValidationError:
            written = None
            log.error("is left alone, for its status was written by another version: %s", message)
        raise UnreadableError(message, metadata=metadata, spec=raw.get("spec", {}), status=written) from None
