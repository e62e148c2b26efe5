"""`--storage`: which store a local command means."""

from pathlib import Path

from pydantic import ValidationError

from comd_api.base import FORMS, STORE_FORM
from comd_api.exit_codes import UserError
from comd_api.run import RunSpec, Storage


def choose_storage(spec: RunSpec | None, option: str | None, *, default: Path) -> Storage:
    """The storage that a run uses on this machine. `option` as the user typed it; without one the folder `default`."""
    if option is None:
        return Storage(uri=folder_uri(default))
    if not option:
        raise UserError(f"--storage is empty; right would be {FORMS[STORE_FORM]}; or a folder, or manifest")
    if option == "manifest":
        if spec is None or spec.storage is None:
            raise UserError("--storage manifest: the manifest has no spec.storage; set it, or name a store here")
        return spec.storage
    try:
        if "://" in option:
            named = Storage(uri=option)
            return named if spec is None or spec.storage is None else spec.storage.replace(uri=named.uri)
        return Storage(uri=folder_uri(Path(option)))
    except ValidationError:
        raise UserError(f"--storage {option}: right would be {FORMS[STORE_FORM]}; or a folder, or manifest") from None


def folder_uri(folder: Path) -> str:
    """As the store reads it: percent-encoded (RFC 8089)."""
    return folder.absolute().as_uri()
