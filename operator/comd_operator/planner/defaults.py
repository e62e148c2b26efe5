"""What the operator adds to runs that leave it out."""

from dataclasses import dataclass

from comd_api.pods import LocalObjectReference, Queue, Toleration
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
    queue: str | None = None
    tolerations: tuple[Toleration, ...] = ()


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
    pod = spec.trainer.pod_template.spec
    pod = pod.replace(tolerations=pod.tolerations or list(defaults.tolerations))
    trainer = spec.trainer.replace(
        image=spec.trainer.image or defaults.trainer_image,
        pod_template=spec.trainer.pod_template.replace(spec=pod),
    )
    queue = spec.queue or (Queue(name=defaults.queue) if defaults.queue else None)
    return run.replace(spec=spec.replace(storage=storage, trainer=trainer, queue=queue))
