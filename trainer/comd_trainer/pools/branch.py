"""One branch of the prompted augmentor, hard or easy: how many candidates to ask for next, and which of them are taken
(method section 12, rows 19-24). Candidates are numbered, so that a restart asks for the same ones and takes the same
ones."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from comd_api.exit_codes import BadDataError
from comd_trainer.data.rows import Candidate, Item, Turn
from comd_trainer.pools.dedup import Novelty
from comd_trainer.pools.filters import reject_reason
from comd_trainer.pools.parents import Parents

FIRST_SURPLUS = 1.2
"""The first wave asks for this many times what is wanted; later ones go by how many were taken so far."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A reply of the augmentor, cleaned."""

    attempt: int
    image: str | None
    """What the new instruction is about."""
    text: str
    finish: Literal["stop", "length"]
    objection: str | None = None
    """Why it can't be taken, by checks that need more than the text: `evaluation`, `unanswerable`."""


@dataclass(kw_only=True)
class Branch:
    name: Literal["hard", "easy"]
    round: int
    parents: Parents
    wanted: int
    max_attempts: int
    attempts: int = 0
    accepted: list[Item] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def missing(self) -> int:
        return self.wanted - len(self.accepted)

    def next_wave(self) -> range:
        """Numbers of the attempts to make next; empty when the branch has what it wants. Raises BadDataError when it
        may make no more, because an augmentor that repeats itself would be asked for ever."""
        if self.missing <= 0:
            return range(0)
        if self.attempts >= self.max_attempts:
            reasons = Counter(candidate.reason for candidate in self.candidates if not candidate.accepted)
            told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            raise BadDataError(
                f"the augmentor made {len(self.accepted)} of {self.wanted} {self.name} items in {self.attempts} attempts, "
                f"all that augmentor.chat.maxAttemptsFactor allows; turned down: {told or 'none'}. Raise the factor, "
                f"ask for fewer (rounds.augmentation.{self.name}Items), or use an augmentor that varies more"
            )
        rate = len(self.accepted) / self.attempts if self.attempts else 1 / FIRST_SURPLUS
        size = math.ceil(self.missing / rate) if rate > 0 else self.max_attempts
        return range(self.attempts, min(self.attempts + size, self.max_attempts))

    def offer(self, proposal: Proposal, novelty: Novelty) -> None:
        """Takes the proposal or notes why not. Proposals come in the order of their attempts; those that come when the
        branch has what it wants are not looked at."""
        if self.missing <= 0:
            return
        assert proposal.attempt == self.attempts, "attempts are decided on in their order"
        self.attempts += 1
        parent = self.parents.at(proposal.attempt)
        reason = reject_reason(proposal.text, finish=proposal.finish) or proposal.objection
        duplicate = novelty.duplicate(proposal.text, image=proposal.image) if reason is None else None
        if duplicate is not None:
            reason = duplicate.reason
        self.candidates.append(
            Candidate(
                parent=parent.id,
                branch=self.name,
                text=proposal.text,
                accepted=reason is None,
                reason=reason or "",
                neighbour=duplicate.neighbour if duplicate else None,
                rouge=duplicate.rouge if duplicate else None,
            )
        )
        if reason is None:
            item = Item(
                id=f"round-{self.round}/{self.name}-{len(self.accepted) + 1}",
                image=proposal.image,
                turns=(Turn(role="user", text=proposal.text),),
                origin=self.name,
                round=self.round,
                parent=parent.id,
            )
            self.accepted.append(item)
            novelty.add(item)


def attempts_allowed(wanted: int, factor: float) -> int:
    return math.ceil(wanted * factor)


def reasons_of(candidates: list[Candidate]) -> dict[str, dict[str, int]]:
    """How many candidates were turned down, by branch and reason."""
    counted: dict[str, Counter[str]] = {}
    for candidate in candidates:
        if not candidate.accepted:
            counted.setdefault(candidate.branch, Counter())[candidate.reason] += 1
    return {branch: dict(sorted(reasons.items())) for branch, reasons in sorted(counted.items())}
