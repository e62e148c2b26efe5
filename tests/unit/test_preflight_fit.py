"""What fits the GPUs asked for: tables of manifests and of sentences."""

import re
from typing import Any

import pytest

from comd_api.exit_codes import UserError
from comd_api.run import RunSpec
from comd_trainer.preflight import fit
from comd_trainer.preflight.images import SampledImages
from comd_trainer.preflight.memory import Memory
from comd_trainer.preflight.named import PRETRAINING_FIELD, SEED_FIELD
from comd_trainer.preflight.overlap import FileOverlap
from comd_trainer.preflight.rows import DataRows
from comd_trainer.preflight.summary import MAX_LENGTH, summarise
from comd_trainer.preflight.weights import Weights

CLIP = 304_000_000
GiB = 1 << 30


def llava(language: int, projector: int = 21_000_000) -> Weights:
    parts: Any = {"VisionTower": CLIP, "Projector": projector, "LanguageModel": language}
    return Weights(parameters=parts, stored_bytes=2 * (CLIP + projector + language))


WEIGHTS = {
    "spec.student.checkpoint.source": llava(6_740_000_000),
    "spec.teacher.checkpoint.source": llava(13_000_000_000),
    "spec.assessor.model.checkpoint.source": Weights(
        parameters={"LanguageModel": 70_000_000_000}, stored_bytes=140 * 10**9
    ),
}


def spec(trainer: dict[str, Any], *, training: dict[str, Any] | None = None, **changes: Any) -> RunSpec:
    ranks = trainer.get("numNodes", 1) * trainer.get("numProcPerNode", 1)
    numbers = {"batchSize": 4 * ranks, "firstRound": {"batchSize": 4 * ranks}, **(training or {})}
    return RunSpec.model_validate(
        {
            "student": {"checkpoint": {"source": "m/s"}},
            "teacher": {"checkpoint": {"source": "m/t"}},
            "augmentor": {"type": "Retrieval"},
            "data": {"images": "i", "seed": {"instructions": "s.jsonl"}, "bank": "b.jsonl"},
            "rounds": {"count": 2},
            "training": numbers,
            "trainer": trainer,
            **changes,
        }
    )


def check(run: RunSpec) -> None:
    fit.check_memory(run, fit.needs(run, WEIGHTS, on_gpu=True))


GPUS = {"numProcPerNode": 8, "resourcesPerNode": {"limits": {"nvidia.com/gpu": 8}}}


@pytest.mark.parametrize(
    ("gpu_memory", "zero_stage"),
    [("80Gi", 2), ("80Gi", 3), ("40Gi", 2), ("32Gi", 3)],
)
def test_seven_billion_on_eight(gpu_memory: str, zero_stage: int) -> None:
    check(spec(GPUS | {"gpuMemory": gpu_memory}, training={"deepspeed": {"zeroStage": zero_stage}}))


REFUSED = {
    "what more sharing would mend": (
        spec(GPUS | {"gpuMemory": "80Gi"}, training={"deepspeed": {"zeroStage": 0}}),
        r"spec\.trainer\.gpuMemory is 80Gi, but phase tune needs at least 126\.5 GiB on each of 8 GPUs for the student "
        r"\(7\.1 B parameters, 6\.8 B of them trained: weights 13\.2 GiB, master weights and AdamW 75\.6 GiB, "
        r"gradients 37\.8 GiB, without activations\); set spec\.training\.deepspeed\.zeroStage to 1, or use a smaller student, "
        r"or GPUs with more memory",
    ),
    "what only more GPUs would mend": (
        spec({"gpuMemory": "80Gi"}, training={"deepspeed": {"zeroStage": 3}}),
        r".* needs at least .* on each of 1 GPU for the student .*; use more GPUs, such as 2 "
        r"\(numNodes \* numProcPerNode\), or a smaller student, or GPUs with more memory",
    ),
    "what more GPUs and more sharing would mend": (
        spec({"gpuMemory": "30Gi"}, training={"deepspeed": {"zeroStage": 0}}),
        r".*; use more GPUs, such as 4 \(numNodes \* numProcPerNode\) and set spec\.training\.deepspeed\.zeroStage to 3, or .*",
    ),
    "what nothing but another model would mend": (
        spec(GPUS | {"gpuMemory": "12Gi"}, teacher={"endpoint": {"url": "http://a/v1", "model": "m"}}),
        r".*phase tune .*; use a smaller student, or GPUs with more memory",
    ),
    "a teacher that is whole on each GPU": (
        spec(GPUS | {"gpuMemory": "24Gi"}),
        r"spec\.trainer\.gpuMemory is 24Gi, but phase teach needs at least 24\.8 GiB on each of 8 GPUs for the teacher "
        r"\(13\.3 B parameters, whole on each, without activations\); use a smaller teacher, or GPUs with more memory, "
        r"or put it behind an endpoint \(spec\.teacher\.endpoint\), which may spread it over several GPUs",
    ),
    "an assessor": (
        spec(GPUS | {"gpuMemory": "80Gi"}, assessor={"model": {"checkpoint": {"source": "m/a"}}}),
        r".*phase assess needs at least 130\.4 GiB .* for the assessor .*\(spec\.assessor\.model\.endpoint\).*",
    ),
    "a node without GPUs": (
        spec({"numProcPerNode": 2, "resourcesPerNode": {"limits": {"memory": "16Gi"}}}),
        r"spec\.trainer\.resourcesPerNode\.limits\.memory is 16Gi, but phase teach needs at least 24\.8 GiB on each node for the "
        r"teacher \(.*\) in 2 processes; give more memory, or a smaller teacher",
    ),
}


@pytest.mark.parametrize(("run", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_can_not_fit(run: RunSpec, says: str) -> None:
    with pytest.raises(UserError) as raised:
        check(run)
    assert re.fullmatch(says, str(raised.value)), str(raised.value)


@pytest.mark.parametrize(
    "limits", [{"memory": "16Gi", "nvidia.com/gpu": 1}, {"memory": "16Gi", "nvidia.com/mig-3g.40gb": 1}]
)
def test_a_node_s_memory_says_nothing_of_its_gpus(limits: dict[str, Any]) -> None:
    check(spec({"resourcesPerNode": {"limits": limits}}))


@pytest.mark.parametrize(
    ("run", "phases"),
    [
        (
            spec({}),
            ["teach teacher", "tune student", "answer teacher", "answer student", "assess teacher as assessor"],
        ),
        (
            spec({}, assessor={"type": "Reference"}),
            ["teach teacher", "tune student", "answer teacher", "answer student"],
        ),
        (
            spec(
                {},
                augmentor={"type": "Repeat"},
                data={"images": "i", "seed": {"instructions": "s", "targets": "Original"}},
            ),
            ["tune student"],
        ),
        (
            spec(
                {},
                augmentor={"type": "Chat", "chat": {"checkAnswerable": True}},
                assessor={"model": {"checkpoint": {"source": "m/a"}}},
            ),
            [
                *("teach teacher", "tune student", "answer teacher", "answer student", "assess assessor"),
                *("augment teacher as augmentor", "augment assessor"),
            ],
        ),
        (
            spec({}, teacher={"endpoint": {"url": "http://a/v1", "model": "m"}}),
            ["tune student", "answer student"],
        ),
    ],
)
def test_each_phase_with_what_it_loads(run: RunSpec, phases: list[str]) -> None:
    def told(need: fit.Need) -> str:
        teacher = need.field == "spec.teacher" and need.role != "teacher"
        return f"{need.phase} {'teacher as ' if teacher else ''}{need.role}"

    assert [told(need) for need in fit.needs(run, WEIGHTS, on_gpu=True)] == phases


# ---- in words


def items(count: int) -> Any:
    return tuple(object() for _ in range(count))


def rows(**more: Any) -> DataRows:
    return DataRows(
        items={SEED_FIELD: items(12_480), "spec.data.bank": items(51_200), "spec.data.evaluation[0].items": items(300)},
        **more,
    )


def test_the_findings_in_a_paragraph() -> None:
    run = spec(
        GPUS | {"gpuMemory": "40Gi"},
        data={
            "images": "i",
            "seed": {"instructions": "s.jsonl"},
            "bank": "b.jsonl",
            "evaluation": [{"name": "held-out", "items": "e.jsonl"}],
        },
    )
    found = fit.needs(run, WEIGHTS, on_gpu=True)
    overlap = {
        SEED_FIELD: FileOverlap(rows=37, images=37, evaluation={"held-out": 37}),
        PRETRAINING_FIELD: FileOverlap(rows=2, images=2, evaluation={"held-out": 2}),
    }
    told = summarise(
        run,
        rows=rows(bad={SEED_FIELD: 3}, missing={SEED_FIELD: 3}),
        images=SampledImages(looked_at=40, bad=1),
        overlap=overlap,
        found=found,
    )
    assert told == (
        "12,480 seed rows, 51,200 bank rows, 300 rows of evaluation set held-out; "
        "37 seed rows share an image with evaluation set held-out and are left out; "
        "2 pre-training pairs share an image with evaluation set held-out and are learned from all the same; "
        "3 seed rows can't be used, for want of their image; 1 of 40 images looked at can't be used; "
        "student 7.1 B, teacher 13.3 B parameters; "
        "tuning needs at least 25.7 GiB on each of 8 GPUs of 40Gi, activations aside; "
        "answering at least 24.8 GiB (teacher)"
    )


def test_what_is_tight_says_what_would_ease_it() -> None:
    run = spec(GPUS | {"gpuMemory": "28Gi"})
    told = summarise(run, rows=rows(), images=SampledImages(), overlap={}, found=fit.needs(run, WEIGHTS, on_gpu=True))
    assert "that leaves little for them: lower training.microBatchSize, set training.gradientCheckpointing" in told


def test_a_paragraph_has_an_end() -> None:
    sets = [{"name": "a" * 60 + str(number), "items": "e.jsonl"} for number in range(8)]
    run = spec({}, data={"images": "i", "seed": {"instructions": "s"}, "bank": "b", "evaluation": sets})
    found = DataRows(items={SEED_FIELD: items(5)} | {f"spec.data.evaluation[{n}].items": items(1) for n in range(8)})
    shared = {SEED_FIELD: FileOverlap(rows=4, images=3, evaluation={each["name"]: 1 for each in sets})}
    told = summarise(run, rows=found, images=SampledImages(), overlap=shared, found=[])
    assert len(told) <= MAX_LENGTH
    assert (
        told
        == "5 seed rows, 8 rows of 8 evaluation sets; 4 seed rows share an image or a text with 8 evaluation sets and are left out"
    )


def test_what_is_too_much_is_left_out_from_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comd_trainer.preflight.summary.MAX_LENGTH", 80)
    run = spec({})
    found = DataRows(items={SEED_FIELD: items(5)})
    told = summarise(run, rows=found, images=SampledImages(), overlap={}, found=fit.needs(run, WEIGHTS, on_gpu=True))
    assert told == "5 seed rows; student 7.1 B, teacher 13.3 B parameters"


def test_memory_in_words() -> None:
    assert [fit.gib(count) for count in (3 * GiB, 34.1 * GiB, 300_000)] == ["3.0 GiB", "34.1 GiB", "0.3 MiB"]
    assert [fit.billions(count) for count in (13_300_000_000, 86_200_000, 41_000)] == ["13.3 B", "86.2 M", "41 k"]
    assert Memory(weights=1, loading=9).peak == 9
