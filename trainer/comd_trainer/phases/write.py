"""`augmentor.type: Chat`: a prompted model writes new instructions, in waves, until both branches have what they want
(method section 4c; section 12, rows 19-25)."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from comd_trainer import metrics
from comd_trainer.context import PhaseContext
from comd_trainer.data.annotations import Annotation
from comd_trainer.data.hygiene import EvaluationData
from comd_trainer.data.rows import Candidate, Item
from comd_trainer.data.seeds import derive
from comd_trainer.generation.base import Reply, Request, fingerprint_of
from comd_trainer.phases.assess import assessor_field, assessor_model
from comd_trainer.phases.inputs import annotations_of, evaluation_data
from comd_trainer.pools.branch import Branch, Proposal, attempts_allowed
from comd_trainer.pools.dedup import Novelty
from comd_trainer.pools.filters import clean, reject_reason
from comd_trainer.pools.overlap import OverlappingImages
from comd_trainer.pools.parents import Parents
from comd_trainer.pools.prompts import answerable_turns, augment_turns, says_yes


def write_new(
    ctx: PhaseContext, *, hard: Parents, easy: Parents, pool: list[Item]
) -> tuple[list[Item], list[Candidate], dict[str, Any]]:
    """New items, all candidates that were looked at, and facts for the manifest. Raises BadDataError when the attempts
    run out.

    What is asked depends on the attempt's number alone, and replies are kept, so a restart goes through the same waves.
    """
    wanted, factor = ctx.spec.rounds.augmentation, ctx.spec.augmentor.chat.max_attempts_factor

    def branch_of(name: Literal["hard", "easy"], parents: Parents, count: int) -> Branch:
        allowed = attempts_allowed(count, factor)
        return Branch(name=name, round=ctx.config.round, parents=parents, wanted=count, max_attempts=allowed)

    branches = [branch_of("hard", hard, wanted.hard_items), branch_of("easy", easy, wanted.easy_items)]
    deduplication = ctx.spec.rounds.deduplication
    assert deduplication.scope is not None, "the supervisor resolves the spec"
    novelty = Novelty(
        rouge_threshold=deduplication.rouge_threshold, scope=deduplication.scope, max_repeats=deduplication.max_repeats
    )
    for item in pool:
        novelty.add(item)
    writer = Writer(ctx, pool)
    while waves := [(branch, branch.next_wave()) for branch in branches if branch.missing > 0]:
        for branch, proposal in writer.propose(waves):
            looked_at = len(branch.candidates)
            branch.offer(proposal, novelty)
            count_candidates(ctx, branch.candidates[looked_at:])
    candidates = [candidate for branch in branches for candidate in branch.candidates]
    attempts = {branch.name: branch.attempts for branch in branches}
    return [item for branch in branches for item in branch.accepted], candidates, {"attempts": attempts}


def count_candidates(ctx: PhaseContext, candidates: Iterable[Candidate]) -> None:
    """Every rank comes to the same ones."""
    if ctx.is_first:
        for each in candidates:
            result = "accepted" if each.accepted else "rejected"
            metrics.add(metrics.CANDIDATES, branch=each.branch, result=result, reason=each.reason or "none")


class Writer:
    """Asks the augmentor, and the assessor where the manifest wants questions checked."""

    def __init__(self, ctx: PhaseContext, pool: list[Item]) -> None:
        self.ctx = ctx
        self.annotations: Mapping[str, Annotation] = annotations_of(ctx)
        self.evaluation: EvaluationData = evaluation_data(ctx)
        self.overlapping = (
            OverlappingImages({item.image for item in pool if item.image is not None}, self.annotations)
            if ctx.spec.augmentor.chat.image == "Overlapping"
            else None
        )

    def propose(self, waves: list[tuple[Branch, range]]) -> list[tuple[Branch, Proposal]]:
        """One proposal for each attempt of the waves, in their order; all branches in one call, so that the model is
        loaded once."""
        from comd_trainer.generation.calls import cached_generate

        spec = self.ctx.spec
        model = spec.augmentor.model or spec.teacher
        replies = cached_generate(
            self.ctx,
            model=model,
            role="augmentor",
            fingerprint=fingerprint_of(model, self.ctx.fingerprints),
            requests=[self._request(branch, attempt) for branch, wave in waves for attempt in wave],
            decoding=spec.generation.augmentor,
            field="spec.augmentor.model" if spec.augmentor.model is not None else "spec.teacher",
        )
        proposals = [
            (branch, self._proposal(branch, attempt, replies[_key(branch, attempt)]))
            for branch, wave in waves
            for attempt in wave
        ]
        return self._checked(proposals) if spec.augmentor.chat.check_answerable else proposals

    def _request(self, branch: Branch, attempt: int) -> Request:
        parent, image = branch.parents.at(attempt), self._image(branch, attempt)
        annotation = self.annotations.get(image or "")
        return Request(
            key=_key(branch, attempt),
            turns=augment_turns(parent, branch=branch.name, has_image=image is not None, annotation=annotation),
            image=image if annotation is None else None,
            seed=derive(self.ctx.spec.seed, "augment", branch.round, branch.name, attempt),
        )

    def _image(self, branch: Branch, attempt: int) -> str | None:
        image = branch.parents.at(attempt).image
        return (
            image if self.overlapping is None else self.overlapping.choose(image, visit=branch.parents.visit(attempt))
        )

    def _proposal(self, branch: Branch, attempt: int, reply: Reply) -> Proposal:
        text, image = clean(reply.text), self._image(branch, attempt)
        leaked = self.evaluation.text(text, has_image=image is not None) is not None
        objection = "evaluation" if leaked else None
        return Proposal(attempt=attempt, image=image, text=text, finish=reply.finish, objection=objection)

    def _checked(self, proposals: list[tuple[Branch, Proposal]]) -> list[tuple[Branch, Proposal]]:
        """Asks of each proposal that is not turned down anyway whether its image supports it (method section 12, row
        25)."""
        from comd_trainer.generation.calls import cached_generate

        spec, model = self.ctx.spec, assessor_model(self.ctx.spec)
        asked = [
            (branch, proposal)
            for branch, proposal in proposals
            if proposal.objection is None and reject_reason(proposal.text, finish=proposal.finish) is None
        ]
        replies = cached_generate(
            self.ctx,
            model=model,
            role="assessor",
            fingerprint=fingerprint_of(model, self.ctx.fingerprints),
            requests=[self._question(branch, proposal) for branch, proposal in asked],
            decoding=spec.generation.assessor,
            field=assessor_field(spec),
        )
        refused = {key for key, reply in replies.items() if not says_yes(reply.text)}
        return [
            (
                branch,
                replace(proposal, objection="unanswerable") if _key(branch, proposal.attempt) in refused else proposal,
            )
            for branch, proposal in proposals
        ]

    def _question(self, branch: Branch, proposal: Proposal) -> Request:
        annotation = self.annotations.get(proposal.image or "")
        return Request(
            key=_key(branch, proposal.attempt),
            turns=answerable_turns(proposal.text, has_image=proposal.image is not None, annotation=annotation),
            image=proposal.image if annotation is None else None,
            seed=derive(self.ctx.spec.seed, "answerable", branch.round, branch.name, proposal.attempt),
        )


def _key(branch: Branch, attempt: int) -> str:
    return f"{branch.name}/{attempt}"
