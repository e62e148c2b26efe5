"""`DistillationRun`: one run, from raw models and data to a finished student."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from comd_api import API_VERSION
from comd_api.base import KMS_KEY_FORM, REGION_FORM, URL_FORM, ApiModel, Name, Rule, StoreUri
from comd_api.data import Data
from comd_api.pods import ConfigMapKeySelector, LocalObjectReference, Queue, SecretKeySelector, Trainer
from comd_api.promotion import Promotion
from comd_api.recipe import Generation, Pretraining, Rounds, Training
from comd_api.roles import Assessor, Augmentor, Model, Student
from comd_api.start import StartFrom
from comd_api.status import RunStatus


class CABundleSource(ApiModel):
    """Where a bundle of PEM certificates is kept: a key of a ConfigMap or of a Secret."""

    config_map_key_ref: ConfigMapKeySelector | None = None
    secret_key_ref: SecretKeySelector | None = None

    rules = (
        Rule(
            "has(self.configMapKeyRef) != has(self.secretKeyRef)", "set exactly one of configMapKeyRef and secretKeyRef"
        ),
    )


Checksums = Literal["WhenSupported", "WhenRequired"]


class S3Options(ApiModel):
    """How the bucket is reached. Credentials come from where boto3 looks: environment, shared file, service account. Fields are named
    as the SDKs' settings and the parameters of S3's requests."""

    endpoint: Annotated[str, StringConstraints(pattern=URL_FORM, max_length=1024)] | None = None
    """URL of an S3 service other than AWS."""
    region: Annotated[str, StringConstraints(pattern=REGION_FORM, max_length=64)] | None = None
    secret_ref: LocalObjectReference | None = None
    """Secret with the keys `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, which the kubelet hands to the pods. `comd run` does
    not read it."""
    ca_bundle: CABundleSource | None = None
    """Certificates that the endpoint's is trusted by, in place of the public ones. `comd run` does not read it: there the variable
    `AWS_CA_BUNDLE` names a file."""
    addressing_style: Literal["Auto", "Path", "Virtual"] | None = None
    """`Path` writes the bucket's name into the URL's path, `Virtual` into its host name. `Auto`, as when left out, is the SDK's own
    choice: virtual where AWS is asked, path elsewhere."""
    server_side_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Asked for with every object that is written; what the bucket does by default when left out."""
    sse_kms_key_id: Annotated[str, StringConstraints(pattern=KMS_KEY_FORM, max_length=2048)] | None = None
    """Id, alias or ARN of the key; AWS's own (`aws/s3`) when left out."""
    request_checksum_calculation: Checksums | None = None
    """`WhenRequired` for services that refuse the checksums with which requests are sent. When left out, as the environment has it
    (`AWS_REQUEST_CHECKSUM_CALCULATION`), else `WhenSupported`."""
    response_checksum_validation: Checksums | None = None
    """`WhenRequired` for services whose checksums do not fit what they send (`AWS_RESPONSE_CHECKSUM_VALIDATION`)."""

    rules = (
        Rule(
            "!has(self.sseKmsKeyId) || "
            "(has(self.serverSideEncryption) && self.serverSideEncryption in ['aws:kms', 'aws:kms:dsse'])",
            "sseKmsKeyId needs serverSideEncryption: aws:kms (or aws:kms:dsse)",
        ),
        Rule(
            "!has(self.caBundle) || !has(self.endpoint) || self.endpoint.startsWith('https://')",
            "caBundle is what a certificate is checked by, and an endpoint with http:// shows none; write https://, or leave caBundle out",
        ),
    )


class Storage(ApiModel):
    uri: StoreUri
    """Root of everything that the run reads by a relative path and everything it writes: `s3://bucket/prefix` or `file:///folder`."""
    s3: S3Options = Field(default_factory=S3Options)


class Retry(ApiModel):
    limit: Annotated[int, Field(ge=0, le=100)] = 3
    """How often a stage that failed may be tried again. User errors and bad data are never retried; preemption costs nothing."""
    backoff_seconds: Annotated[int, Field(ge=0, le=86_400)] = 10
    """Wait before the first retry; doubled for each further one, with jitter."""
    max_backoff_seconds: Annotated[int, Field(ge=0, le=86_400)] = 600


Seconds = Annotated[int, Field(ge=1, le=31_536_000)]


class RunSpec(ApiModel):
    student: Student
    teacher: Model
    """The model whose answers are imitated. It stays as it is."""
    assessor: Assessor = Field(default_factory=Assessor)
    augmentor: Augmentor = Field(default_factory=Augmentor)
    data: Data
    pretraining: Pretraining | None = None
    """Stage 1; left out for a student that is pre-trained already."""
    rounds: Rounds = Field(default_factory=Rounds)
    training: Training = Field(default_factory=Training)
    generation: Generation = Field(default_factory=Generation)
    storage: Storage | None = None
    """Where artifacts live. `comd run` uses a folder unless `--storage` says otherwise."""
    trainer: Trainer = Field(default_factory=Trainer)
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 0
    """What every random choice comes from: the same manifest gives the same pools."""
    start_from: StartFrom | None = None
    """Begin with the student of an earlier run. There is no pre-training then, and `student` must be what that run had."""
    skip_if_unchanged_since: Name | None = None
    """Name of a run in the same namespace and store. Where neither data nor recipe have changed since, the run is done with
    `preflight`, has that run's student, and asks for no GPU."""
    promotion: Promotion | None = None
    """When the student takes the place of the one that is served; decided in a last stage, `promote`, which needs no GPU."""
    reuse: Literal["Always", "Never"] = "Always"
    """Whether phases are taken over that another run has finished in the same store, on the same content, by the same recipe, seed and
    code. What this run has finished itself is never made twice."""
    execution: Literal["Stage", "Phase"] = "Stage"
    """One Job per stage, its phases one after the other in the same pods; or one Job per phase."""
    retry: Retry = Field(default_factory=Retry)
    active_deadline_seconds: Seconds | None = None
    """The run fails when it has been active for longer; time spent suspended does not count."""
    stage_deadline_seconds: Seconds | None = None
    """A stage fails when its attempts together have been active for longer."""
    queue_deadline_seconds: Seconds | None = None
    """The run fails when a stage has waited for longer to be admitted, scheduled and started. Time in the queue counts for neither of
    the other deadlines."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """How long the Jobs and their logs are kept after the run has ended; until the run is deleted when left out."""
    queue: Queue | None = None
    """Kueue's queue. Without one, Jobs are made unsuspended and wait for the scheduler alone."""
    managed_by: Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]+/[a-zA-Z0-9._-]+$", max_length=128)] | None = (
        None
    )
    """Who works on this run, when it is not this operator (`comd.dev/operator`): it is then left alone."""
    suspend: bool = False
    """Stop, and go on from the artifacts when it is taken back."""
    suspend_policy: Literal["Now", "StageEnd"] = "Now"
    """Whether a running stage is stopped (it continues from its last checkpoint) or may finish first."""

    MUTABLE: ClassVar[frozenset[str]] = frozenset(
        {
            "retry",
            "active_deadline_seconds",
            "stage_deadline_seconds",
            "queue_deadline_seconds",
            "ttl_seconds_after_finished",
            "suspend",
            "suspend_policy",
        }
    )
    """Fields that may change once the run has started."""

    rules = (
        Rule(
            "!has(self.student.composed) || has(self.pretraining) || has(self.startFrom)",
            "student.composed starts with a random projector and needs pretraining (with data.pretraining); add pretraining: {}",
        ),
        Rule(
            "!has(self.pretraining) || has(self.data.pretraining)",
            "pretraining needs data.pretraining: a JSON Lines file of image and caption pairs",
        ),
        Rule(
            "!(self.augmentor.type in ['Retrieval', 'Random']) || has(self.data.bank)",
            "augmentor.type Retrieval and Random draw from data.bank; set it, or use type Chat",
        ),
        Rule(
            "self.rounds.assessment.freshItems == 0 || has(self.data.bank)",
            "rounds.assessment.freshItems are drawn from data.bank; set it, or set freshItems to 0",
        ),
        Rule(
            "self.augmentor.type != 'Chat' || self.augmentor.chat.image != 'Overlapping' || has(self.data.annotations)",
            "augmentor.chat.image Overlapping compares annotated objects and needs data.annotations",
        ),
        Rule(
            "self.assessor.type != 'Judge' || self.assessor.judge.evidence != 'Annotations' || has(self.data.annotations)",
            "assessor.judge.evidence Annotations needs data.annotations",
        ),
        Rule(
            "self.assessor.type != 'Likelihood' || has(self.assessor.model) || has(self.teacher.checkpoint)",
            "assessor.type Likelihood needs log-probabilities, which an endpoint as the teacher does not give; "
            "set assessor.model.checkpoint, or use type Judge",
        ),
        Rule(
            "self.assessor.type != 'Reference' || self.augmentor.type != 'Chat' || self.rounds.count == 1",
            "assessor.type Reference needs known answers, and items that augmentor.type Chat writes have none; "
            "use augmentor.type Retrieval, or another assessor",
        ),
        Rule(
            "self.rounds.count == 1 || self.augmentor.type == 'Repeat' || "
            "self.rounds.augmentation.hardItems + self.rounds.augmentation.easyItems > 0",
            "rounds.augmentation.hardItems and easyItems are both 0, so that round 2 would have nothing to learn from",
        ),
        Rule(
            "!(self.augmentor.type in ['Chat', 'Retrieval']) || self.rounds.count == 1 || "
            "self.rounds.hardItemsFloor <= self.rounds.assessment.sampleSize + self.rounds.assessment.freshItems",
            "rounds.hardItemsFloor is larger than the number of items that a round compares "
            "(assessment.sampleSize + assessment.freshItems), so that no round could reach it",
        ),
        Rule(
            "!has(self.rounds.earlyStop) || self.data.evaluation.exists(e, e.name == self.rounds.earlyStop.evaluation)",
            "rounds.earlyStop.evaluation must be the name of an entry of data.evaluation",
        ),
        Rule(
            "!has(self.promotion) || self.data.evaluation.exists(e, e.name == self.promotion.evaluation)",
            "promotion.evaluation must be the name of an entry of data.evaluation",
        ),
        Rule(
            "!has(self.promotion) || "
            "self.promotion.guards.all(guard, self.data.evaluation.exists(e, e.name == guard.evaluation))",
            "promotion.guards[].evaluation must be names of entries of data.evaluation",
        ),
        Rule(
            "self.training.batchSize % (self.training.microBatchSize * self.trainer.numNodes * self.trainer.numProcPerNode) == 0",
            "training.batchSize must be a multiple of training.microBatchSize * trainer.numNodes * trainer.numProcPerNode",
        ),
        Rule(
            "!has(self.training.firstRound.batchSize) || "
            "self.training.firstRound.batchSize % "
            "(self.training.microBatchSize * self.trainer.numNodes * self.trainer.numProcPerNode) == 0",
            "training.firstRound.batchSize must be a multiple of training.microBatchSize * trainer.numNodes * trainer.numProcPerNode",
        ),
        Rule(
            "!has(self.pretraining) || "
            "self.pretraining.batchSize % (self.training.microBatchSize * self.trainer.numNodes * self.trainer.numProcPerNode) == 0",
            "pretraining.batchSize must be a multiple of training.microBatchSize * trainer.numNodes * trainer.numProcPerNode",
        ),
    )


class ObjectMeta(BaseModel):
    """The part of Kubernetes' object metadata that we read; the rest is kept as it is."""

    model_config = ConfigDict(extra="allow", frozen=True, validate_by_name=True, validate_by_alias=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """Checked by a rule, because the API server takes no schema for it."""
    namespace: Name = "default"
    uid: str | None = None
    generation: int = 1
    creation_timestamp: Annotated[str | None, Field(alias="creationTimestamp")] = None


def _immutable_rules() -> tuple[Rule, ...]:
    """One transition rule for each field of the spec that a started run must keep."""
    rules = []
    for python_name, field in RunSpec.model_fields.items():
        if python_name in RunSpec.MUTABLE:
            continue
        name = field.alias or python_name
        optional = field.default is None and not field.is_required()
        same = f"self.spec.{name} == oldSelf.spec.{name}"
        if optional:
            same = f"has(self.spec.{name}) == has(oldSelf.spec.{name}) && (!has(self.spec.{name}) || {same})"
        rules.append(
            Rule(
                f"!has(oldSelf.status) || !has(oldSelf.status.startTime) || ({same})",
                f"spec.{name} can't change once the run has started; delete the run and apply it again, or give it another name",
            )
        )
    return tuple(rules)


class DistillationRun(ApiModel):
    """Distils a small vision-language student from a large teacher: pre-training, then rounds of competition."""

    api_version: Literal["comd.dev/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["DistillationRun"] = "DistillationRun"
    metadata: ObjectMeta
    spec: RunSpec
    status: RunStatus | None = None

    rules = (
        Rule(
            "size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name may have at most 63 of the characters a-z, 0-9 and -, because it becomes a label of the run's Jobs",
        ),
        Rule(
            "!has(self.spec.startFrom) || !has(self.spec.startFrom.run) || self.spec.startFrom.run != self.metadata.name",
            "spec.startFrom.run is the run itself; name another one, or another metadata.name",
        ),
        Rule(
            "!has(self.spec.skipIfUnchangedSince) || self.spec.skipIfUnchangedSince != self.metadata.name",
            "spec.skipIfUnchangedSince is the run itself; name another one, or another metadata.name",
        ),
        *_immutable_rules(),
    )
