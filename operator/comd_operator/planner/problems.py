"""Why a run that its schema takes can't be begun on a cluster."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import unquote

from comd_api.pods import PodSpec, Trainer, gpu_problem
from comd_api.profile import resolve
from comd_api.roles import SecretKeyRef
from comd_api.run import DistillationRun, RunSpec, Storage
from comd_operator.planner.manifests import CA_FOLDER, CA_VOLUME, OWN_VOLUMES, endpoint_key_refs, variable_of

MAX_CONFIG_BYTES = 120_000
"""Of a stage's config, without what earlier stages have made: Linux takes no variable of more than 131,072 bytes."""

RESERVED = {**OWN_VOLUMES, CA_VOLUME: CA_FOLDER}
"""Volumes of the operator's own, and where they are mounted."""


def problem(run: DistillationRun) -> str | None:
    """One sentence that names field, value and what would be right. run: with what it leaves out filled in."""
    return next(_problems(run.spec), None)


def problems(run: DistillationRun) -> list[str]:
    """All of them."""
    return list(_problems(run.spec))


def _problems(spec: RunSpec) -> Iterator[str]:
    if spec.storage is None:
        yield (
            "spec.storage is not set, and pods share no folder; set spec.storage.uri, such as s3://bucket/prefix, or start the "
            "operator with --storage-uri (the chart's defaults.storage.uri)"
        )
        return
    if spec.trainer.image is None:
        yield "spec.trainer.image is not set, nor the operator's --trainer-image (the chart's defaults.trainerImage); set one of them"
    yield from _of_folder(spec.storage, spec.trainer)
    yield from _of_gpus(spec.trainer)
    yield from _of_volumes(spec.trainer.pod_template.spec)
    yield from _of_mounts(spec.trainer)
    yield from _of_keys(spec)
    size = len(json.dumps(resolve(spec).to_wire(), separators=(",", ":")))
    if size > MAX_CONFIG_BYTES:
        yield (
            f"spec has {size} bytes as JSON, and a stage is handed at most {MAX_CONFIG_BYTES}; shorten trainer.env, "
            "trainer.podTemplate or chat templates"
        )


def _of_folder(storage: Storage, trainer: Trainer) -> Iterator[str]:
    if not storage.uri.startswith("file://"):
        return
    folder = PurePosixPath(unquote(storage.uri.removeprefix("file://")))
    if not any(folder.is_relative_to(mount.mount_path) for mount in trainer.volume_mounts):
        yield (
            f"spec.storage.uri ({storage.uri}) is a folder of the pod itself, which is gone with it; use s3://bucket/prefix, or "
            "mount a shared volume there by trainer.podTemplate.spec.volumes and trainer.volumeMounts"
        )


def _of_gpus(trainer: Trainer) -> Iterator[str]:
    said = gpu_problem(trainer)
    if said is not None:
        yield said


def _of_volumes(pod: PodSpec) -> Iterator[str]:
    for name, times in Counter(str(volume.get("name")) for volume in pod.volumes).items():
        if name in RESERVED:
            yield (
                f"spec.trainer.podTemplate.spec.volumes: {name!r} is a name of the operator's own "
                f"({', '.join(sorted(RESERVED))}); give the volume another"
            )
        elif times > 1:
            yield f"spec.trainer.podTemplate.spec.volumes: {name!r} stands there twice; give each volume a name of its own"


def _of_mounts(trainer: Trainer) -> Iterator[str]:
    known = {str(volume.get("name")) for volume in trainer.pod_template.spec.volumes}
    for mount in trainer.volume_mounts:
        if mount.name not in known:
            yield (
                f"spec.trainer.volumeMounts: {mount.name!r} is no volume of podTemplate.spec.volumes; "
                f"known there are {', '.join(sorted(known)) or 'none'}"
            )
        if PurePosixPath(mount.mount_path) in map(PurePosixPath, RESERVED.values()):
            yield (
                f"spec.trainer.volumeMounts: {mount.mount_path} is where the operator mounts a volume of its own; "
                "use another path"
            )


def _of_keys(spec: RunSpec) -> Iterator[str]:
    refs: dict[str, SecretKeyRef] = {}
    for ref in endpoint_key_refs(spec):
        other = refs.setdefault(variable_of(ref), ref)
        if other != ref:
            yield (
                f"the trainer reads both {other.name}/{other.key} and {ref.name}/{ref.key} of apiKeySecretRef from the variable "
                f"{variable_of(ref)}; rename one of them"
            )
