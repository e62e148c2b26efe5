"""What a run says of itself: scalars and references, bounded in size. The full ledgers live in the artifact store."""

from typing import Annotated, Literal

from pydantic import Field

from comd_api.base import ApiModel, Count, Digest, Timestamp

RunPhase = Literal["Pending", "Queued", "Running", "Stalled", "Suspended", "Succeeded", "Failed"]
StagePhase = Literal["Pending", "Queued", "Running", "Retrying", "Suspended", "Succeeded", "Reused", "Failed"]
"""`Reused`: finished artifacts were found in the store, so that nothing was run."""
ExitClass = Literal["Done", "UserError", "BadData", "TryAgain", "CannotStart", "Failed", "OutOfMemory", "Deadline"]
"""How an attempt ended. `TryAgain`: preempted, evicted, node or storage lost. `CannotStart`: its pods could not be started (image,
Secret, resources). Neither spends the retry budget."""
PhaseName = Literal["preflight", "pretrain", "teach", "tune", "answer", "assess", "augment", "evaluate", "promote"]
"""The steps of a stage, in the order in which a round runs them; the first two and the last are of stages of their own."""

ShortText = Annotated[str, Field(max_length=64)]
MessageText = Annotated[str, Field(max_length=1024)]


class ArtifactRef(ApiModel):
    """An artifact of a stage that a later stage, or the user, needs."""

    name: ShortText
    """`preflight`, `student`, or `pools`."""
    uri: Annotated[str, Field(max_length=1024)]
    """Prefix that holds `manifest.json`."""
    digest: Digest
    """SHA-256 over its files: the same content has the same digest, whichever run made it."""


class GroupScore(ApiModel):
    name: ShortText
    value: float
    num_items: Count


class Score(ApiModel):
    """Accuracy of one role on one evaluation set, with a 95 % Wilson interval."""

    evaluation: ShortText
    role: Literal["student", "teacher"]
    value: float
    low: float
    high: float
    num_items: Count
    groups: Annotated[list[GroupScore], Field(max_length=16)] = Field(
        default_factory=list, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """Broken down by the rows' `group`; left out when there are more than 16."""


class Counts(ApiModel):
    """Items of one round."""

    train: Count | None = None
    """Items the student was tuned on."""
    compared: Count | None = None
    """Items that teacher and student were compared on."""
    fresh: Count | None = None
    """Of these, bank items that the student was never trained on; they join the next train pool."""
    hard: Count | None = None
    easy: Count | None = None
    dropped: Count | None = None
    """Items without a verdict, because the assessor never gave a score that parses."""
    accepted: Count | None = None
    """New items that the augmentor made."""
    rejected: Count | None = None
    """Candidates that a filter turned down."""
    teacher_answers: Count | None = None
    """Answers that the teacher had to make for the pools in this stage; those found in the cache, and those to evaluation sets, are
    not counted."""


class PhaseTime(ApiModel):
    name: PhaseName
    seconds: float
    reused: bool = False
    """The artifact was there already."""


class StageStatus(ApiModel):
    """One entry of the ledger: what is known of a stage."""

    name: ShortText
    phase: StagePhase = "Pending"
    attempt: int = 0
    """Tries so far, preempted ones included."""
    failures: int = 0
    """Tries that count against `spec.retry.limit`."""
    preemptions: int = 0
    """How often the queue took the resources back from a running attempt."""
    completed_jobs: int = 0
    """With `execution: Phase`: how many of the stage's Jobs are done."""
    job_name: Annotated[str, Field(max_length=63)] | None = None
    job_uid: ShortText | None = None
    start_time: Timestamp | None = None
    completion_time: Timestamp | None = None
    retry_time: Timestamp | None = None
    """When the next attempt starts."""
    active_seconds: float = 0.0
    """Time of attempts that have ended."""
    attempt_start_time: Timestamp | None = None
    """When the attempt under way was made, or was last admitted by the queue."""
    queued_since: Timestamp | None = None
    """Since when the attempt waits to be admitted or scheduled."""
    queued_seconds: float = 0.0
    """Time that attempts have waited before."""
    waiting_since: Timestamp | None = None
    """Since when nothing of the stage has run: as `queuedSince`, but over all attempts in a row that could not be started."""
    exit_class: ExitClass | None = None
    """How the last attempt ended."""
    message: MessageText | None = None
    stop: MessageText | None = None
    """Why no further round makes sense, when the stage found that out (`StageResult.stop`)."""
    promoted: bool | None = None
    """Of the stage `promote`: whether the channel points to this run's student now. `message` says why."""
    artifacts: Annotated[list[ArtifactRef], Field(max_length=4)] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    phases: Annotated[list[PhaseTime], Field(max_length=8)] = Field(
        default_factory=list, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    counts: Counts | None = None
    scores: Annotated[list[Score], Field(max_length=16)] = Field(
        default_factory=list, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )

    @property
    def done(self) -> bool:
        """Whether it has what later stages build on."""
        return self.phase in ("Succeeded", "Reused")


class Condition(ApiModel):
    """As metav1.Condition."""

    type: ShortText
    status: Literal["True", "False", "Unknown"]
    reason: ShortText
    message: Annotated[str, Field(max_length=4096)] = ""
    last_transition_time: Timestamp
    observed_generation: int


class RunStatus(ApiModel):
    observed_generation: int = 0
    phase: RunPhase = "Pending"
    stage: ShortText | None = None
    """The stage that runs, waits or ended the run."""
    round: int | None = None
    """The last round that was begun."""
    progress: ShortText | None = None
    """What the stage's trainer last said: phase and share done."""
    score: ShortText | None = None
    """Student's newest accuracy on the first evaluation set beside the teacher's, such as `0.731 / 0.884`."""
    start_time: Timestamp | None = None
    completion_time: Timestamp | None = None
    active_seconds: float = 0.0
    """Time before the last suspension; counts against `spec.activeDeadlineSeconds`."""
    active_since: Timestamp | None = None
    student: ArtifactRef | None = None
    """The newest finished student; the run's result when it has succeeded."""
    stages: Annotated[list[StageStatus], Field(max_length=40)] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )

    def stage_named(self, name: str) -> StageStatus | None:
        return next((stage for stage in self.stages if stage.name == name), None)
