"""Which field of the manifest the kubelet's words are about: it knows objects and volumes, not where they were named."""

import re

from comd_api.run import RunSpec
from comd_operator.planner.manifests import CA_VOLUME, OPTIONAL_KEYS, S3_KEYS, ca_bundle


def with_field(spec: RunSpec, message: str) -> str:
    """The words, and after them the field and what would be right, where they tell of what `spec.storage.s3` names."""
    said = _of_keys(spec, message) or _of_certificates(spec, message)
    return f"{message}; {said}" if said else message


def _of_keys(spec: RunSpec, message: str) -> str | None:
    ref = spec.storage.s3.secret_ref if spec.storage is not None else None
    if ref is None or not re.search(rf'[Ss]ecret (\S+/|"){re.escape(ref.name)}("|\s|$)', message):
        return None
    needed = [key for key in S3_KEYS if key not in OPTIONAL_KEYS]
    return (
        f"spec.storage.s3.secretRef names the Secret {ref.name}, which must have the keys {' and '.join(needed)} (of temporary "
        f"credentials {' and '.join(OPTIONAL_KEYS)} too)"
    )


def _of_certificates(spec: RunSpec, message: str) -> str | None:
    source = ca_bundle(spec)
    if source is None or f'"{CA_VOLUME}"' not in message:
        return None
    ref = source.config_map_key_ref or source.secret_key_ref
    assert ref is not None, "a rule of the contract"
    kind = "ConfigMap" if source.config_map_key_ref is not None else "Secret"
    return f"spec.storage.s3.caBundle names the key {ref.key} of the {kind} {ref.name}, which must hold certificates in PEM"
