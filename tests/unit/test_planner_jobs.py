"""Spec → stages → phases → Jobs and what each is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comd_api.status import RunStatus, StageStatus
from comd_operator.planner import jobs_of, plan_job, plan_run, stage_config
from comd_operator.planner.configs import inputs_of
from comd_operator.planner.names import MAX_JOB_NAME, job_name
from tests.unit.rule_examples import COMPOSED
from tests.unit.runs import artifact, make_run

RUN_NAMES = st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
STAGES = st.sampled_from(["preflight", "pretrain", "round-1", "round-32"])
PHASES = st.sampled_from([None, "preflight", "pretrain", "teach", "tune", "evaluate"])

FULL = "teach tune answer assess augment evaluate"
LAST = "teach tune answer assess evaluate"
BOTH = {"student": {"composed": COMPOSED}, "pretraining": {}, "data__pretraining": "captions.jsonl"}


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({}, f"preflight: preflight; pretrain: evaluate; round-1: {FULL}; round-2: {LAST}"),
        ({"rounds__count": 1}, f"preflight: preflight; pretrain: evaluate; round-1: {LAST}"),
        (
            {"data__evaluation": None},
            "preflight: preflight; round-1: teach tune answer assess augment; round-2: teach tune answer assess",
        ),
        (BOTH, f"preflight: preflight; pretrain: pretrain evaluate; round-1: {FULL}; round-2: {LAST}"),
        (
            {"augmentor__type": "Repeat"},
            "preflight: preflight; pretrain: evaluate; round-1: teach tune augment evaluate; round-2: teach tune evaluate",
        ),
    ],
)
def test_stages_and_phases(changes: dict[str, object], stages: str) -> None:
    spec = make_run(**changes).spec
    jobs = plan_run(spec, run="tiny")
    assert "; ".join(f"{job.stage}: {' '.join(job.phases)}" for job in jobs) == stages

    one_each = plan_run(spec.replace(execution="Phase"), run="tiny")
    assert [(job.stage, *job.phases) for job in one_each] == [
        (job.stage, phase) for job in jobs for phase in job.phases
    ]


def test_names_say_what_they_do() -> None:
    spec = make_run().spec
    assert plan_job(spec, run="tiny", stage="round-1", job_index=0, attempt=3).name == "tiny-round-1-a3"
    by_phase = spec.replace(execution="Phase")
    assert plan_job(by_phase, run="tiny", stage="round-1", job_index=1, attempt=3).name == "tiny-round-1-a3-tune"


@given(run=RUN_NAMES, stage=STAGES, phase=PHASES, attempt=st.integers(1, 10_000))
def test_names_are_short_and_valid(run: str, stage: str, phase: str | None, attempt: int) -> None:
    name = job_name(run=run, stage=stage, attempt=attempt, phase=phase)  # type: ignore[arg-type]
    assert len(name) <= MAX_JOB_NAME
    assert name[0].isalnum()
    assert name[-1].isalnum()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


KEYS = st.tuples(RUN_NAMES, STAGES, PHASES, st.integers(1, 20))


@given(one=KEYS, other=KEYS)
def test_names_of_different_jobs_differ(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    names = [job_name(run=k[0], stage=k[1], phase=k[2], attempt=k[3]) for k in (one, other)]  # type: ignore[arg-type]
    assert (names[0] == names[1]) == (one == other)


def test_a_run_called_like_a_stage_gets_no_other_run_s_name() -> None:
    assert job_name(run="x-pretrain", stage="pretrain", attempt=1, phase=None) != job_name(
        run="x", stage="pretrain", attempt=1, phase="pretrain"
    )


def ledger() -> RunStatus:
    def stage(name: str, phase: str, *refs: str) -> StageStatus:
        artifacts = [artifact(ref, f"file:///{name}/{ref}") for ref in refs]
        return StageStatus(name=name, phase=phase, artifacts=artifacts)  # type: ignore[arg-type]

    return RunStatus(
        stages=[
            stage("preflight", "Succeeded", "preflight"),
            stage("pretrain", "Succeeded", "student"),
            stage("round-1", "Succeeded", "student", "pools"),
            stage("round-2", "Running", "student"),
        ]
    )


@pytest.mark.parametrize(
    ("stage", "inputs"),
    [
        ("preflight", []),
        ("pretrain", ["preflight/preflight"]),
        ("round-1", ["preflight/preflight", "pretrain/student"]),
        ("round-2", ["preflight/preflight", "round-1/student", "round-1/pools"]),
        ("round-3", ["preflight/preflight", "round-1/student", "round-1/pools"]),
    ],
)
def test_inputs_are_the_newest_of_finished_stages_before(stage: str, inputs: list[str]) -> None:
    assert [ref.uri.removeprefix("file:///") for ref in inputs_of(ledger(), stage)] == inputs


def test_config() -> None:
    run = make_run().replace(status=ledger())
    job = plan_job(run.spec, run="tiny", stage="round-2", job_index=0, attempt=4)
    config = stage_config(run, job)
    assert (config.run, config.namespace, config.stage, config.round) == ("tiny", "default", "round-2", 2)
    assert config.last_round
    assert config.attempt == 4
    assert config.phases == list(jobs_of(run.spec, "round-2")[0])
    assert config.spec.rounds.teacher_floor == 7.0, "the profile is resolved"
    assert type(config).model_validate(config.to_wire()) == config
