"""Content keys of phases: the same recipe on the same inputs has the same key, and so the same place in the store."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from comd_api.stage import StageConfig
from comd_api.status import PhaseName

KEY_FORMAT = 1
"""Raised when what a phase makes of the same recipe changes, so that older artifacts are not taken for newer ones."""


def phase_key(*, phase: PhaseName, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Key of a phase's artifact: SHA-256 (hex) over its name, its recipe and the digests of its input artifacts."""
    content = {"format": KEY_FORMAT, "phase": phase, "recipe": recipe, "inputs": dict(inputs)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def phase_prefix(config: StageConfig, phase: PhaseName, key: str) -> str:
    """Where the artifact lies below the storage root."""
    return f"{config.namespace}/{config.run}/{config.stage}/{phase}/{key[:16]}"


def stage_artifact_name(phase: PhaseName) -> str | None:
    """What a phase's artifact is called for later stages; None when only its own stage needs it."""
    names: dict[str, str] = {"preflight": "preflight", "pretrain": "student", "tune": "student", "augment": "pools"}
    return names.get(phase)
