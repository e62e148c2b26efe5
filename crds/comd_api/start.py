"""What a run may begin with in place of `spec.student`: what an earlier run in the same store has come to."""

from comd_api.base import ApiModel, Digest, Name, Rule, StoreUri


class StartingArtifact(ApiModel):
    uri: StoreUri
    """Of a student below `spec.storage.uri`, as `status.student.uri` of its run has it."""
    digest: Digest
    """As `status.student.digest`. A student that has another one is refused."""


class StartFrom(ApiModel):
    """A run, a channel, or an artifact. With both run and channel it is the channel's student; the run's where nothing was promoted there
    yet, or only students of another `spec.student`."""

    run: Name | None = None
    """Name of a run in the same namespace and store: its newest student, and its pools, so that round 1 goes over what is new in the
    seed alone. The run need not be there any more; what it has made is."""
    channel: Name | None = None
    """The student that this channel points to, and the pools of the run that made it."""
    artifact: StartingArtifact | None = None
    """A student alone: round 1 goes over the whole seed."""

    rules = (
        Rule(
            "has(self.artifact) != (has(self.run) || has(self.channel))",
            "set run, channel or both; or artifact alone",
        ),
    )
