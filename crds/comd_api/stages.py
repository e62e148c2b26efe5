"""Which stages a run has, and which phases each stage: a pure function of the spec, known to both sides."""

from comd_api.run import RunSpec
from comd_api.status import PhaseName


def stage_names(spec: RunSpec) -> list[str]:
    """All stages of a run, in order: `preflight`, `pretrain`, `round-1` …, `promote`."""
    names = ["preflight"]
    if phases_of(spec, "pretrain"):
        names.append("pretrain")
    names += [f"round-{number}" for number in range(1, spec.rounds.count + 1)]
    return names + (["promote"] if spec.promotion is not None else [])


def needs_no_gpu(stage: str) -> bool:
    """Whether a stage only looks at files and compares numbers: in one pod, with `trainer.preflightResources`."""
    return stage in ("preflight", "promote")


def round_of(stage: str) -> int:
    """`round-3` → 3; 0 for the stages before the rounds."""
    return int(stage.removeprefix("round-")) if stage.startswith("round-") else 0


def competes(spec: RunSpec) -> bool:
    """Whether rounds compare student and teacher. The controls `Random` and `Repeat` do not."""
    return spec.augmentor.type in ("Chat", "Retrieval")


def phases_of(spec: RunSpec, stage: str) -> list[PhaseName]:
    """The phases of a stage, in order.

    `pretrain` also evaluates, so that the student before round 1 and the teacher have scores. A run that starts from an earlier one's
    student does nothing but that there. The last round makes no new items, for nobody would learn from them; it still compares, so
    that its hard items can be told from the first round's.
    """
    evaluate: list[PhaseName] = ["evaluate"] if spec.data.evaluation else []
    if stage == "preflight":
        return ["preflight"]
    if stage == "promote":
        return ["promote"]
    if stage == "pretrain":
        pretrains = spec.pretraining is not None and spec.start_from is None
        pretrain: list[PhaseName] = ["pretrain"] if pretrains else []
        return pretrain + evaluate
    phases: list[PhaseName] = ["teach", "tune"]
    if competes(spec):
        phases += ["answer", "assess"]
    if round_of(stage) < spec.rounds.count:
        phases += ["augment"]
    return phases + evaluate
