"""What of a spec goes into a Job: all but what may change while a run is under way, which no Job has a use for."""

import hashlib
import json

from comd_api.run import RunSpec


def content_mark(spec: RunSpec) -> str:
    """A short hash: the same for as long as a Job made anew would be the same."""
    harmless = {RunSpec.model_fields[name].alias or name for name in RunSpec.MUTABLE}
    kept = {name: value for name, value in spec.to_wire().items() if name not in harmless}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
