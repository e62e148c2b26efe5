"""Preflight's decisions: what can be known before a model is loaded."""

import pytest

from comd_api.exit_codes import UserError
from comd_api.run import RunSpec
from comd_trainer.generation.endpoint import read_key
from comd_trainer.preflight import answering_models, check_numbers, named_sources

BASE = {
    "student": {"composed": {"visionTower": {"source": "m/v"}, "projector": {}, "languageModel": {"source": "m/l"}}},
    "teacher": {"checkpoint": {"source": "m/t"}},
    "augmentor": {"type": "Retrieval"},
    "data": {"images": "i", "pretraining": "p.jsonl", "seed": {"instructions": "s.jsonl"}, "bank": "b.jsonl"},
    "pretraining": {},
    "rounds": {
        "count": 3,
        "augmentation": {"hardItems": 10, "easyItems": 5},
        "assessment": {"freshItems": 7},
        "hardItemsFloor": 1,
    },
}


def spec(**changes: object) -> RunSpec:
    return RunSpec.model_validate({**BASE, **changes})


def test_every_source_is_named_by_its_field() -> None:
    found = {one.field: one.source for one in named_sources(spec())}
    assert found == {
        "spec.student.composed.visionTower.source": "m/v",
        "spec.student.composed.languageModel.source": "m/l",
        "spec.teacher.checkpoint.source": "m/t",
        "spec.data.images": "i",
        "spec.data.seed.instructions": "s.jsonl",
        "spec.data.pretraining": "p.jsonl",
        "spec.data.bank": "b.jsonl",
    }


@pytest.mark.parametrize(
    ("augmentor", "bank", "enough"),
    [
        ("Retrieval", 44, True),  # two rounds of 10 + 5 new items and 7 fresh ones; the last round draws none
        ("Retrieval", 43, False),
        ("Random", 44, True),  # as many as the competition
        ("Random", 43, False),
    ],
)
def test_the_bank_must_hold_what_all_rounds_draw(augmentor: str, bank: int, enough: bool) -> None:
    run = spec(augmentor={"type": augmentor})
    if enough:
        check_numbers(run, bank_rows=bank, seed_rows=100)
    else:
        with pytest.raises(UserError, match=rf"the bank holds {bank}"):
            check_numbers(run, bank_rows=bank, seed_rows=100)


def test_a_floor_that_no_round_can_reach_is_refused() -> None:
    run = spec(rounds={**BASE["rounds"], "hardItemsFloor": 30})  # type: ignore[dict-item]
    check_numbers(run, bank_rows=100, seed_rows=23)
    with pytest.raises(UserError, match=r"hardItemsFloor is 30, but round 1 compares only 29 items"):
        check_numbers(run, bank_rows=100, seed_rows=22)


def test_an_endpoint_s_key_is_missed_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMD_SECRET_OPEN_AI_TOKEN", raising=False)
    reference = {"name": "open-ai", "key": "token"}
    run = spec(
        teacher={"endpoint": {"url": "http://a/v1", "model": "m", "apiKeySecretRef": reference}},
        student={"checkpoint": {"source": "s"}},
    )
    [(field, model)] = answering_models(run)
    assert (field, model) == ("spec.teacher", run.teacher)
    assert [one.field for one in named_sources(run)][:2] == ["spec.student.checkpoint.source", "spec.data.images"]
    assert model.endpoint is not None
    with pytest.raises(UserError, match=r"spec\.teacher\.endpoint\.apiKeySecretRef: .* COMD_SECRET_OPEN_AI_TOKEN"):
        read_key(model.endpoint, field=f"{field}.endpoint")
