"""What the operator hands to a trainer (config in the Job itself) and what it gets back (termination message)."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field

from comd_api.base import ApiModel, Count
from comd_api.run import RunSpec
from comd_api.status import ArtifactRef, Counts, ExitClass, MessageText, PhaseName, PhaseTime, Score, ShortText

MAX_TERMINATION_MESSAGE = 4096
"""Bytes that kubelet keeps of a container's termination message."""


class StageConfig(ApiModel):
    """Everything a trainer needs to know to run a stage, or a part of its phases."""

    namespace: str
    run: str
    stage: str
    """`preflight`, `pretrain`, `round-1` …"""
    round: int = 0
    """0 before the first round."""
    last_round: bool = False
    attempt: int = 1
    phases: list[PhaseName]
    """What to run, in order."""
    spec: RunSpec
    """With `storage` set."""
    inputs: list[ArtifactRef] = Field(default_factory=list)
    """Artifacts of earlier stages: `preflight`; `student` and `pools` of the stage before, or of where the run starts from."""


class ReusedStage(ApiModel):
    """A stage of which `preflight` has found every phase finished in the store."""

    name: ShortText
    artifacts: Annotated[list[ArtifactRef], Field(max_length=4)] = Field(default_factory=list)
    counts: Counts | None = None
    scores: Annotated[list[Score], Field(max_length=16)] = Field(default_factory=list)
    stop: MessageText | None = None
    """As `StageResult.stop`."""

    def plain(self) -> "ReusedStage":
        """Scores without groups, to six digits."""
        numbers = ("value", "low", "high")
        rounded = [
            score.replace(**{name: round(getattr(score, name), 6) for name in numbers})
            for score in _without_groups(self.scores)
        ]
        return self.replace(scores=rounded)

    def passed_through(self) -> "ReusedStage":
        """Without the pools, for which only the stage after it has a use."""
        return self.replace(artifacts=[ref for ref in self.artifacts if ref.name != "pools"])


class StageResult(ApiModel):
    """The termination message: how a stage (or the part of it that one Job runs) ended. At most 4,096 bytes as JSON."""

    exit_class: ExitClass
    message: MessageText = ""
    """For the user: what went wrong and what would be right. A stage that went well may tell what it found, as `preflight` does."""
    failed_phase: PhaseName | None = None
    stop: MessageText | None = None
    """Why no further round makes sense (fewer hard items than the floor; of `preflight`: nothing has changed); the run ends well with the
    newest student."""
    promoted: bool | None = None
    """Of the stage `promote`: whether the channel points to this run's student now."""
    artifacts: Annotated[list[ArtifactRef], Field(max_length=4)] = Field(default_factory=list)
    phases: Annotated[list[PhaseTime], Field(max_length=8)] = Field(default_factory=list)
    counts: Counts | None = None
    scores: Annotated[list[Score], Field(max_length=16)] = Field(default_factory=list)
    reused: Annotated[list[ReusedStage], Field(max_length=39)] = Field(default_factory=list)
    """The stages after `preflight` that need not run, in order and without a gap."""

    def to_termination_message(self) -> str:
        """Compact JSON of at most 4,096 bytes. What is broken down by group goes first when it does not fit (it is in the
        `evaluate` artifact as well), then reused stages go, the last ones first (their phases are found again when they are run), then
        texts are cut, then times and scores go: a stage that is done must not fail for them."""
        for candidate in self._ever_shorter():
            wire = candidate.to_wire()
            if not candidate.reused:
                del wire["reused"]  # which an operator that is older does not know
            text = json.dumps(wire, separators=(",", ":"), ensure_ascii=False)
            if len(text.encode()) <= MAX_TERMINATION_MESSAGE:
                return text
        raise AssertionError(f"a stage result of {len(text.encode())} bytes can't be reported")

    def _ever_shorter(self) -> Iterator["StageResult"]:
        yield self
        plain = self.replace(scores=_without_groups(self.scores), reused=[stage.plain() for stage in self.reused])
        yield plain
        for number in range(len(plain.reused), 0, -1):
            kept = plain.reused[:number]
            yield plain.replace(reused=[*(stage.passed_through() for stage in kept[:-1]), kept[-1]])
        short = plain.replace(message=self.message[:256], stop=self.stop and self.stop[:256], reused=[])
        yield from (short, short.replace(phases=[]), short.replace(phases=[], scores=[]))


def _without_groups(scores: Sequence[Score]) -> list[Score]:
    return [score.replace(groups=[]) for score in scores]


class Progress(ApiModel):
    """What a running stage says at `/progress`."""

    stage: str
    phase: PhaseName | None = None
    done: Count = 0
    """Steps or items of the phase so far."""
    total: Count = 0
    unit: str = ""
    """What is counted: `steps` or `items`."""
    rate: float | None = None
    """Units per second."""
    seconds_left: float | None = None
    """Estimate for the phase."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """The newest values of the phase, such as `loss`."""
