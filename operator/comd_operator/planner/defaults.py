"""What the operator adds to runs that leave it out."""

from dataclasses import dataclass, field

from comd_api.pods import LocalObjectReference, Queue, Toleration
from comd_api.run import DistillationRun, S3Options, Storage

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
    storage_s3: S3Options = field(default_factory=S3Options)
    """The other fields."""
    queue: str | None = None
    tolerations: tuple[Toleration, ...] = ()


def fill(run: DistillationRun, defaults: ClusterDefaults) -> DistillationRun:
    """The run with what it leaves out; the object itself stays as the user wrote it."""
    spec = run.spec
    storage = spec.storage
    if storage is None and defaults.storage_uri is not None:
        storage = Storage(uri=defaults.storage_uri)
    if storage is not None and storage.uri.startswith("s3://"):
        storage = storage.replace(s3=_fill_s3(storage.s3, defaults))
    pod = spec.trainer.pod_template.spec
    pod = pod.replace(tolerations=pod.tolerations or list(defaults.tolerations))
    trainer = spec.trainer.replace(
        image=spec.trainer.image or defaults.trainer_image,
        pod_template=spec.trainer.pod_template.replace(spec=pod),
    )
    queue = spec.queue or (Queue(name=defaults.queue) if defaults.queue else None)
    return run.replace(spec=spec.replace(storage=storage, trainer=trainer, queue=queue))


OF_THE_SERVICE = ("ca_bundle", "addressing_style", "request_checksum_calculation", "response_checksum_validation")
"""What the operator knows of its own endpoint says nothing of one that a run names itself."""
OF_THE_OBJECTS = ("server_side_encryption", "sse_kms_key_id")
"""They belong together."""


def _fill_s3(given: S3Options, defaults: ClusterDefaults) -> S3Options:
    further, secret = defaults.storage_s3, defaults.storage_secret
    changes = {
        "endpoint": given.endpoint or defaults.storage_endpoint,
        "region": given.region or defaults.storage_region,
        "secret_ref": given.secret_ref or (LocalObjectReference(name=secret) if secret else None),
    }
    if given.endpoint is None:
        changes |= {name: getattr(given, name) or getattr(further, name) for name in OF_THE_SERVICE}
    if all(getattr(given, name) is None for name in OF_THE_OBJECTS):
        changes |= {name: getattr(further, name) for name in OF_THE_OBJECTS}
    return given.replace(**changes)
