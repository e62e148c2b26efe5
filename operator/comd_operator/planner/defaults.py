"""What the operator adds to runs that leave it out, and what can't be run on a cluster at all."""

from dataclasses import dataclass

from comd_api.pods import LocalObjectReference, Resources, amount
from comd_api.run import DistillationRun, Storage

TRAINER_PORT = 9400
RENDEZVOUS_PORT = 29_400


@dataclass(frozen=True, kw_only=True)
class ClusterDefaults:
    """So that one manifest fits every cluster: what the operator of each knows is filled in where a run leaves it out."""

    trainer_image: str | None = None
    storage_uri: str | None = None
    storage_endpoint: str | None = None
    storage_region: str | None = None
    storage_secret: str | None = None


def fill(run: DistillationRun, defaults: ClusterDefaults) -> DistillationRun:
    """The run with what it leaves out; the object itself stays as the user wrote it."""
    spec = run.spec
    storage = spec.storage
    if storage is None and defaults.storage_uri is not None:
        storage = Storage(uri=defaults.storage_uri)
    if storage is not None and storage.uri.startswith("s3://"):
        given, secret = storage.s3, defaults.storage_secret
        s3 = given.replace(
            endpoint=given.endpoint or defaults.storage_endpoint,
            region=given.region or defaults.storage_region,
            secret_ref=given.secret_ref or (LocalObjectReference(name=secret) if secret else None),
        )
        storage = storage.replace(s3=s3)
    trainer = spec.trainer.replace(image=spec.trainer.image or defaults.trainer_image)
    return run.replace(spec=spec.replace(storage=storage, trainer=trainer))


def problem(run: DistillationRun) -> str | None:
    """Why a run that its schema takes can't be begun on a cluster: one sentence that names field, value and what would be right. run: with
    what it leaves out filled in."""
    spec = run.spec
    if spec.storage is None:
        return (
            "spec.storage is not set, and pods share no folder; set spec.storage.uri, such as s3://bucket/prefix, or start the "
            "operator with --storage-uri"
        )
    if spec.storage.uri.startswith("file://") and not spec.trainer.volume_mounts:
        return (
            f"spec.storage.uri ({spec.storage.uri}) is a folder of the pod itself, which is gone with it; use s3://bucket/prefix, or "
            "mount a shared volume there by trainer.podTemplate.spec.volumes and trainer.volumeMounts"
        )
    if spec.trainer.image is None:
        return "spec.trainer.image is not set, and the operator was started without --trainer-image; set one of them"
    gpus = gpu_count(spec.trainer.resources_per_node)
    if gpus is not None and gpus != spec.trainer.num_proc_per_node:
        return (
            f"spec.trainer.resourcesPerNode.limits asks for {gpus:g} GPUs, but numProcPerNode is "
            f"{spec.trainer.num_proc_per_node}; one process runs on each GPU, so make them equal"
        )
    known = {volume.get("name") for volume in spec.trainer.pod_template.spec.volumes}
    for mount in spec.trainer.volume_mounts:
        if mount.name not in known:
            return (
                f"spec.trainer.volumeMounts: {mount.name!r} is no volume of podTemplate.spec.volumes; "
                f"known there are {', '.join(sorted(map(str, known))) or 'none'}"
            )
    return None


def gpu_count(resources: Resources) -> float | None:
    """GPUs that a pod asks for, of whichever maker; None when it asks for none."""
    asked = [amount(value) for key, value in (resources.limits or {}).items() if key.endswith("/gpu")]
    return sum(asked) if asked else None
