"""Answers and likelihoods through the cache: made once, whoever asks, however often it was interrupted, on any number
of ranks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from comd_api.exit_codes import BadDataError, UserError
from comd_api.profile import resolve
from comd_api.recipe import Decoding
from comd_api.roles import Checkpoint, Endpoint, Model, SecretKeyRef
from comd_api.run import RunSpec, S3Options, Storage
from comd_api.stage import StageConfig
from comd_trainer.context import PhaseContext, PreemptedError, Progress
from comd_trainer.data.rows import Answer, Item
from comd_trainer.generation import open as opening
from comd_trainer.generation import sharing
from comd_trainer.generation.answering import answer_items
from comd_trainer.generation.base import Reply, Request, fingerprint_of
from comd_trainer.generation.calls import cached_generate
from comd_trainer.generation.endpoint import EndpointGenerator
from comd_trainer.generation.transformers import TransformersGenerator
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import open_store
from tests.tiny import ask, save_tiny_llava, tiny_image
from tests.unit.test_generation_endpoint import echo, serving

TEACHER = Model(checkpoint=Checkpoint(source="models/llava"))
GREEDY = Decoding(temperature=0.0, max_new_tokens=8, batch_size=4)
SAMPLED = GREEDY.replace(temperature=0.9)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_tiny_llava(root)
    return root


@pytest.fixture
def root(tmp_path: Path, models: Path) -> Path:
    (tmp_path / "models").symlink_to(models)
    (tmp_path / "images").mkdir()
    for number in range(4):
        tiny_image(number % 3).save(tmp_path / "images" / f"{number}.png")  # 3.png has the bytes of 0.png
    return tmp_path


def context(
    root: Path, *, rank: int = 0, world_size: int = 1, partial: str = "runs/r/partial", **spec: Any
) -> PhaseContext:
    given = {
        "student": {"checkpoint": {"source": "models/llava"}},
        "teacher": {"checkpoint": {"source": "models/llava"}},
        "data": {"images": "images", "seed": {"instructions": "s.jsonl"}},
        "training": {"precision": "fp32"},
        "storage": {"uri": f"file://{root}"},
        **spec,
    }
    resolved = resolve(RunSpec.model_validate(given))
    storage = Storage(uri=f"file://{root}")
    store = open_store(storage.uri, S3Options())
    (root / "scratch").mkdir(exist_ok=True)
    return PhaseContext(
        config=StageConfig(namespace="n", run="r", stage="round-1", round=1, phases=["teach"], spec=resolved),
        store=store,
        sources=Sources(storage, store, root / "cache-dir"),
        artifacts={},
        fingerprints={"models/llava": "sha256:" + "1" * 64},
        out=root / "out",
        scratch=root / "scratch",
        partial=partial,
        progress=Progress(path=root / "progress.json" if rank == 0 else None),
        stop_file=root / "stop",
        rank=rank,
        world_size=world_size,
    )


def items(number: int = 14) -> list[Item]:
    return [
        Item(
            id=f"i{index}",
            image=f"{index % 4}.png" if index % 5 else None,
            turns=ask(f"what is {index} " + "red " * (index % 6)),
            origin="seed",
        )
        for index in range(number)
    ]


def teach(
    ctx: PhaseContext, asked: list[Item], decoding: Decoding = GREEDY, **changes: Any
) -> tuple[list[Answer], int]:
    given = {"model": TEACHER, "fingerprint": "sha256:teacher", **changes}
    return answer_items(ctx, role="teacher", items=asked, decoding=decoding, field="spec.teacher", **given)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Questions of each batch that a model really answers from here on."""
    seen: list[list[str]] = []
    real = TransformersGenerator._answer

    def spy(self: TransformersGenerator, batch: list[Request], *rest: Any) -> list[Reply]:
        seen.append([request.turns[-1].text for request in batch])
        return real(self, batch, *rest)

    monkeypatch.setattr(TransformersGenerator, "_answer", spy)
    return seen


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("not needed")

    opening._kept.clear()
    for name in names:
        monkeypatch.setattr(opening, name, refuse)


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_second_call_loads_no_model(root: Path, monkeypatch: pytest.MonkeyPatch, decoding: Decoding) -> None:
    first, made = teach(context(root), items(), decoding)
    assert made == 14
    assert [answer.item for answer in first] == [item.id for item in items()]
    assert {answer.model for answer in first} == {"sha256:teacher"}
    forbid(monkeypatch, "load_model")
    renamed = [replace(item, id=f"other-{item.id}", origin="hard", round=3) for item in reversed(items())]
    again, made = teach(context(root, partial="runs/other/partial"), renamed, decoding)
    assert made == 0
    assert [answer.text for answer in reversed(again)] == [answer.text for answer in first]


def test_equal_questions_are_answered_once(root: Path, batches: list[list[str]]) -> None:
    question = Item(id="a", image="0.png", turns=ask("what?"), origin="seed")
    asked = [
        question,
        replace(question, id="b", origin="hard"),
        replace(question, id="c", image="3.png"),  # another file with the same bytes
        replace(question, id="d", image="1.png"),
        replace(question, id="e", image=None),
        replace(question, id="f", turns=ask("what?", "who?", "me")),
    ]
    answers, made = teach(context(root), asked)
    assert made == 4
    assert sum(len(batch) for batch in batches) == 4
    assert len({answer.text for answer in answers[:3]}) == 1


CHANGES: dict[str, tuple[Callable[[Decoding], Decoding], dict[str, Any], dict[str, Any], int]] = {
    "nothing": (lambda decoding: decoding, {}, {}, 0),
    "batch size": (lambda decoding: decoding.replace(batch_size=3), {}, {}, 0),
    "number of rounds": (lambda decoding: decoding, {}, {"rounds": {"count": 7}}, 0),
    "temperature": (lambda decoding: decoding.replace(temperature=0.5), {}, {}, 6),
    "top-p": (lambda decoding: decoding.replace(top_p=0.5), {}, {}, 6),
    "length": (lambda decoding: decoding.replace(max_new_tokens=5), {}, {}, 6),
    "model": (lambda decoding: decoding, {"fingerprint": "sha256:newer"}, {}, 6),
    "precision": (lambda decoding: decoding, {}, {"training": {"precision": "bf16"}}, 6),
    "seed": (lambda decoding: decoding, {}, {"seed": 9}, 6),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_an_answer_depends_on(root: Path, change: tuple[Any, dict[str, Any], dict[str, Any], int]) -> None:
    decode, call, around, made = change
    teach(context(root), items(6), SAMPLED)
    other = context(root, partial="runs/other/partial", **around)
    assert teach(other, items(6), decode(SAMPLED), **call)[1] == made


def test_greedy_answers_depend_on_no_seed(root: Path) -> None:
    teach(context(root), items(6), GREEDY)
    other = context(root, partial="runs/other/partial", seed=9)
    assert teach(other, items(6), GREEDY.replace(top_p=0.5))[1] == 0


def test_a_stopped_phase_goes_on_where_it_was(
    root: Path, batches: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = teach(context(root), items(), SAMPLED, fingerprint="sha256:uninterrupted")
    plan = [list(batch) for batch in batches]
    batches.clear()
    real = TransformersGenerator._answer

    def stopping(self: TransformersGenerator, batch: list[Request], *rest: Any) -> list[Reply]:
        replies = real(self, batch, *rest)
        if len(batches) == 2 and first_attempt:
            (root / "stop").touch()
        return replies

    first_attempt = True
    monkeypatch.setattr(TransformersGenerator, "_answer", stopping)
    # The same fingerprint, so that the plan is the same; the first run's answers are out of reach.
    monkeypatch.setattr(sharing, "FLUSH_SECONDS", 3600.0)
    (root / "cache").rename(root / "elsewhere")
    with pytest.raises(PreemptedError):
        teach(context(root), items(), SAMPLED, fingerprint="sha256:uninterrupted")
    assert batches == plan[:2]
    (root / "stop").unlink()
    batches.clear()
    first_attempt = False
    answers, made = teach(context(root), items(), SAMPLED, fingerprint="sha256:uninterrupted")
    assert batches == plan[2:], "whole missing batches, made of the same questions"
    assert answers == whole
    assert made == 14, "what the stage had to make does not depend on how often it was interrupted"
    progress = json.loads((root / "progress.json").read_text())
    assert (progress["done"], progress["total"], progress["unit"]) == (14, 14, "items")


@pytest.mark.parametrize(("seconds", "shards"), [(0.0, 4), (3600.0, 1)])
def test_shards_are_written_from_time_to_time(
    root: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, shards: int
) -> None:
    monkeypatch.setattr(sharing, "FLUSH_SECONDS", seconds - 1e-9)
    teach(context(root), items())
    assert len(list((root / "cache" / "answers").rglob("*.jsonl"))) == shards


def test_a_torn_shard_is_made_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "FLUSH_SECONDS", -1.0)
    whole, _ = teach(context(root), items())
    shard = sorted((root / "cache" / "answers").rglob("*.jsonl"))[0]
    shard.write_bytes(shard.read_bytes()[:-9])
    assert teach(context(root, partial="runs/other"), items())[0] == whole


def test_all_empty_answers_are_bad_data(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        TransformersGenerator, "_reply", lambda _, request, __: Reply(key=request.key, text="", finish="stop")
    )
    with pytest.raises(BadDataError, match=r"spec\.teacher: all 14 answers of the teacher are empty"):
        teach(context(root), items())


def test_some_empty_answers_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = TransformersGenerator._reply

    def sometimes(self: TransformersGenerator, request: Request, tokens: list[int]) -> Reply:
        return replace(real(self, request, tokens), text="" if "3" in request.turns[-1].text else "yes")

    monkeypatch.setattr(TransformersGenerator, "_reply", sometimes)
    assert {answer.text for answer in teach(context(root), items())[0]} == {"", "yes"}


def test_no_items_no_answers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, "load_model")
    assert teach(context(root), []) == ([], 0)


@pytest.mark.parametrize("image", ["nowhere.png", "../secret.png"])
def test_a_bad_image_is_named(root: Path, image: str) -> None:
    with pytest.raises(BadDataError, match=r"data\.images: image"):
        teach(context(root), [replace(items(1)[0], image=image)])


def test_a_text_only_model_refuses_images(root: Path, models: Path) -> None:
    with pytest.raises(UserError, match="text-only"):
        teach(context(root), items(3), model=models / "language")


def test_a_checkpoint_folder_answers_like_the_role(root: Path, models: Path) -> None:
    role, _ = teach(context(root), items())
    folder, made = teach(context(root), items(), model=models / "llava", fingerprint="sha256:student")
    assert made == 14
    assert [answer.text for answer in folder] == [answer.text for answer in role]


def test_an_endpoint_is_asked_once_and_its_answers_are_kept(root: Path) -> None:
    with serving(echo) as service:
        model = Model(endpoint=service.endpoint(concurrency=2))
        print_of = fingerprint_of(model, {})
        answers, made = teach(context(root), items(), model=model, fingerprint=print_of)
    assert made == 14
    assert service.most <= 2
    assert [answer.text for answer in answers] == [f"you said {item.instruction}".strip() for item in items()]
    again, made = teach(context(root, partial="runs/other"), items(), model=model, fingerprint=print_of)
    assert (again, made) == (answers, 0), "the service is gone, and nobody misses it"


def test_an_endpoint_without_its_key_is_the_users_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMD_SECRET_JUDGE_KEY", raising=False)
    ref = SecretKeyRef(name="judge", key="key")
    model = Model(endpoint=Endpoint(url="http://127.0.0.1:1/v1", model="m", api_key_secret_ref=ref))
    with pytest.raises(UserError, match=r"spec\.teacher\.endpoint\.apiKeySecretRef.*COMD_SECRET_JUDGE_KEY"):
        teach(context(root), items(), model=model)


@pytest.mark.parametrize(
    ("concurrency", "world", "shares"), [(5, 2, [3, 2]), (4, 2, [2, 2]), (1, 3, [1]), (3, 3, [1, 1, 1])]
)
def test_ranks_share_an_endpoints_concurrency(root: Path, concurrency: int, world: int, shares: list[int]) -> None:
    model = Model(endpoint=Endpoint(url="http://127.0.0.1:1/v1", model="m", concurrency=concurrency))
    workers = min(world, opening.max_ranks(model) or world)
    assert workers == len(shares)
    for rank, share in enumerate(shares):
        ctx = context(root, rank=rank, world_size=world)
        generator = opening.open_generator(ctx, model, role="teacher", field="spec.teacher")
        assert isinstance(generator, EndpointGenerator)
        assert generator.concurrency == share


def test_asking_again_with_another_seed_gives_another_reply(root: Path) -> None:
    ctx = context(root)

    def asked(*seeds: int) -> list[str]:
        requests = [Request(key=f"k{seed}", turns=ask("score it"), image="1.png", seed=seed) for seed in seeds]
        replies = cached_generate(
            ctx,
            model=TEACHER,
            role="assessor",
            fingerprint="sha256:judge",
            requests=requests,
            decoding=SAMPLED,
            field="spec.assessor.model",
        )
        return [replies[f"k{seed}"].text for seed in seeds]

    first = asked(1, 2, 3)
    assert len(set(first)) == 3
    assert asked(3, 4, 1)[::2] == [first[2], first[0]]


def test_one_model_is_kept_and_no_second(root: Path, models: Path) -> None:
    ctx = context(root)
    opening._kept.clear()
    first = opening.load_on_device(ctx, models / "llava", field="spec.teacher")
    again = opening.load_on_device(ctx, models / "llava", field="spec.assessor.model")
    assert again.model is first.model
    assert again.field == "spec.assessor.model"
    opening.load_on_device(ctx, models / "language", field="spec.augmentor.model")
    assert [Path(key[0]).name for key in opening._kept] == ["language"]


@pytest.mark.parametrize(
    ("precision", "device", "dtype"),
    [
        ("bf16", "cuda:0", torch.bfloat16),
        ("fp16", "cuda:1", torch.float16),
        ("fp32", "cuda:0", torch.float32),
        ("bf16", "cpu", torch.bfloat16),
        ("fp32", "cpu", torch.float32),
    ],
)
def test_precision(precision: str, device: str, dtype: torch.dtype) -> None:
    assert opening.dtype_for(precision, device) == dtype


def test_half_precision_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"spec\.training\.precision is fp16, which needs GPUs"):
        opening.dtype_for("fp16", "cpu")


def test_fingerprints() -> None:
    assert fingerprint_of(TEACHER, {"models/llava": "sha256:x"}) == "sha256:x"
    services = [
        Model(endpoint=Endpoint(url=url, model=name)) for url in ("http://a/v1", "http://b/v1") for name in ("m", "n")
    ]
    prints = {fingerprint_of(service, {}) for service in services}
    assert len(prints) == 4
    assert all(len(one) == 71 and one.startswith("sha256:") for one in prints)
