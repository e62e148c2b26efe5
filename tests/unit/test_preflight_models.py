"""What preflight makes of model folders: headers alone, held against the models themselves."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from comd_api.exit_codes import UserError
from comd_trainer.models import freeze
from comd_trainer.preflight import weights as module
from comd_trainer.preflight.folders import look_at_model
from comd_trainer.preflight.named import NamedSource
from comd_trainer.preflight.weights import Tensor, component_of, compose, read_header, weigh
from comd_trainer.store.listing import Listing, local_listing
from tests.tiny import (
    load_tiny,
    save_tiny_language_model,
    save_tiny_llava,
    save_tiny_vision_tower,
    tiny_composed,
    tiny_llava,
)

FIELD = "spec.teacher.checkpoint.source"


def listed(folder: Path) -> Listing:
    return local_listing(folder, source="models/m", field=FIELD)


def counting(listing: Listing) -> tuple[Listing, list[int]]:
    """The listing, and the sizes of all reads from it."""
    sizes: list[int] = []

    def read(path: str, start: int, size: int) -> bytes:
        sizes.append(size)
        return listing.read_range(path, start, size)

    return replace(listing, read_range=read), sizes


def named(kind: Any = "checkpoint", field: str = FIELD) -> NamedSource:
    return NamedSource(field=field, source="models/m", kind=kind)


# ---- headers


def test_a_header_is_read_whole_whatever_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"layers.{number}.weight": torch.zeros(2, 3) for number in range(50)}
    save_file(tensors, tmp_path / "model.safetensors")
    whole = read_header(listed(tmp_path), "model.safetensors")
    assert whole is not None
    assert {tensor.name: (tensor.dtype, tensor.shape, tensor.num_bytes) for tensor in whole} == dict.fromkeys(
        tensors, ("F32", (2, 3), 24)
    )
    for first in (1, 8, 9, 100):
        monkeypatch.setattr(module, "FIRST_READ", max(8, first))
        assert read_header(listed(tmp_path), "model.safetensors") == whole


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(-200, 20).filter(bool))
def test_a_file_that_was_cut_or_grew_is_torn(tmp_path: Path, cut: int) -> None:
    save_file({"a": torch.zeros(5)}, tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(data[:cut] if cut < 0 else data + b"x" * cut)
    assert read_header(listed(tmp_path), "whole.safetensors") is not None
    assert read_header(listed(tmp_path), "torn.safetensors") is None


def with_header(text: bytes, tail: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + tail


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 8,
        with_header(b"[]"),
        with_header(b"{"),
        with_header(b'{"a": 1}'),
        with_header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', b"1234"),
        struct.pack("<Q", 1 << 40) + b"{}",
    ],
)
def test_what_is_no_header(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    assert read_header(listed(tmp_path), "a.safetensors") is None


# ---- counts, held against the models


def test_components_are_those_that_training_freezes(tmp_path: Path) -> None:
    model = load_tiny(save_tiny_llava(tmp_path)).model
    names = [name for name, _ in model.named_parameters()]
    assert {component_of(name) for name in names} == {"VisionTower", "Projector", "LanguageModel"}
    assert [component_of(name) for name in names] == [freeze.component_of(name) for name in names]
    for component, prefixes in freeze.PREFIXES.items():
        for prefix in prefixes:
            assert component_of(f"{prefix}x") == component, "freeze.py knows a name that preflight does not"
            assert component_of(f"{prefix.removeprefix('model.')}x") == component, "as older files have it"
    assert component_of("model.layers.0.mlp.up_proj.weight") == "LanguageModel"
    assert component_of("something.else") == "Other"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("projector", ["Linear", "MLP"])
def test_a_checkpoint_counts_as_the_model_does(tmp_path: Path, projector: Any, tied: bool) -> None:
    folder = save_tiny_llava(tmp_path, projector=projector, tied=tied)
    model = load_tiny(folder).model
    found = look_at_model(named(), listed(folder))
    assert found.total == sum(parameter.numel() for parameter in model.parameters())
    learns = freeze.freeze(model, ["Projector", "LanguageModel"], field="f")
    assert found.parameters["Projector"] + found.parameters["LanguageModel"] - found.fixed == sum(
        parameter.numel() for _, parameter in learns
    )
    assert found.stored_bytes == 4 * found.total
    assert not found.quantized


@pytest.mark.parametrize("projector", ["Linear", "MLP"])
def test_a_composed_student_counts_as_what_is_composed(tmp_path: Path, projector: Any) -> None:
    student = tiny_llava(tmp_path, projector=projector)
    vision = look_at_model(
        named("vision-tower", "spec.student.composed.visionTower.source"), listed(tmp_path / "vision")
    )
    language = look_at_model(named("language-model"), listed(tmp_path / "language"))
    found = compose(vision, language, projector=tiny_composed(projector=projector).projector.type)
    model: Any = student.model
    new_rows = (
        model.get_input_embeddings().weight.shape[0]
        - json.loads((tmp_path / "language" / "config.json").read_text())["vocab_size"]
    )
    added = 2 * new_rows * model.get_input_embeddings().weight.shape[1]
    assert new_rows > 0, "the image token joins the vocabulary"
    assert found.total == sum(parameter.numel() for parameter in model.parameters()) - added
    assert found.fixed == (
        sum(each.numel() for each in model.model.multi_modal_projector.linear_2.parameters())
        if projector == "Linear"
        else 0
    )


def tensors(**shapes: tuple[int, ...]) -> list[Tensor]:
    return [Tensor(name=name, dtype="BF16", shape=shape, num_bytes=8) for name, shape in shapes.items()]


def test_of_a_whole_clip_the_vision_half_counts() -> None:
    found = tensors(**{"vision_model.a": (10,), "text_model.a": (20,), "visual_projection.weight": (5,)})
    assert weigh(found, {}, kind="vision-tower").parameters == {"VisionTower": 10}
    assert weigh(tensors(**{"embeddings.a": (10,)}), {}, kind="vision-tower").parameters == {"VisionTower": 10}


@pytest.mark.parametrize(
    ("config", "total"),
    [
        ({"tie_word_embeddings": True}, 10),
        ({"tie_word_embeddings": False}, 20),
        ({}, 10),
        ({"text_config": {"tie_word_embeddings": False}}, 20),
        ({"text_config": {"tie_word_embeddings": False}, "tie_word_embeddings": True}, 10),
    ],
)
def test_tied_weights_that_are_stored_twice_count_once(config: dict[str, Any], total: int) -> None:
    found = tensors(**{"model.embed_tokens.weight": (5, 2), "lm_head.weight": (5, 2)})
    assert weigh(found, config, kind="language-model").total == total


def test_whole_numbers_are_no_parameters() -> None:
    found = [Tensor(name="vision_tower.position_ids", dtype="I64", shape=(7,), num_bytes=56)]
    assert weigh(found, {}, kind="checkpoint").total == 0
    quantized = weigh(found, {"quantization_config": {}}, kind="checkpoint")
    assert (quantized.quantized, quantized.stored_bytes) == (True, 56)


# ---- folders


def write_json(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value))


def test_a_large_checkpoint_costs_a_few_small_reads(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path)
    header = {"model.layers.0.weight": {"dtype": "BF16", "shape": [1 << 29], "data_offsets": [0, 1 << 30]}}
    with (folder / "model.safetensors").open("wb") as file:
        file.write(with_header(json.dumps(header).encode()))
        file.truncate(file.tell() + (1 << 30))
    listing, sizes = counting(listed(folder))
    assert look_at_model(named(), listing).total == 1 << 29
    assert sum(sizes) < 1 << 19, sizes


def shard(folder: Path, *names: str, indexed: tuple[str, ...] = ()) -> None:
    """In place of the one file: shards of one tensor each, and an index of them."""
    (folder / "model.safetensors").unlink()
    for name in names:
        save_file({f"layers.{name}": torch.zeros(4)}, folder / name)
    write_json(folder, "model.safetensors.index.json", {"weight_map": {f"layers.{name}": name for name in indexed}})


def test_shards_are_those_that_the_index_names(tmp_path: Path) -> None:
    folder = save_tiny_llava(tmp_path)
    shard(folder, "a.safetensors", "b.safetensors", "old.safetensors", indexed=("a.safetensors", "b.safetensors"))
    assert look_at_model(named(), listed(folder)).total == 8


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "a shard that is not there": (
        lambda folder: shard(folder, "a.safetensors", indexed=("a.safetensors", "b.safetensors")),
        "b.safetensors is not there, and model.safetensors.index.json names it; put a whole copy",
    ),
    "pickles": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        r"has no \*.safetensors; pickled weights are not loaded",
    ),
    "torn weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}"),
        "model.safetensors is torn, it is shorter or longer than its header says",
    ),
    "torn weights beside the ones that are loaded": (
        lambda folder: (folder / "old.safetensors").write_bytes(b"\x08"),
        "old.safetensors is torn",
    ),
    "a config that is no object": (lambda folder: write_json(folder, "config.json", []), "holds no JSON object"),
    "text that is no JSON": (
        lambda folder: (folder / "tokenizer_config.json").write_bytes(b"\xff\xfe{"),
        "tokenizer_config.json is not JSON",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
    "no template": (
        lambda folder: (folder / "chat_template.jinja").unlink(),
        "has a tokenizer without a chat template; add a chat_template.jinja",
    ),
}


@pytest.mark.parametrize(("spoil", "says"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_with_a_folder(tmp_path: Path, spoil: Callable[[Path], Any], says: str) -> None:
    folder = save_tiny_llava(tmp_path)
    spoil(folder)
    with pytest.raises(UserError, match=rf"^spec\.teacher\.checkpoint\.source \(models/m\):? .*{says}"):
        look_at_model(named(), listed(folder))


def test_a_model_of_text_alone_may_judge_but_not_learn(tmp_path: Path) -> None:
    folder = save_tiny_language_model(tmp_path / "m")
    look_at_model(named(), listed(folder))
    with pytest.raises(UserError, match=r"has no image processor \(preprocessor_config\.json\)"):
        look_at_model(named(field="spec.student.checkpoint.source"), listed(folder))


def test_parts_of_a_student(tmp_path: Path) -> None:
    tower = save_tiny_vision_tower(tmp_path / "v")
    look_at_model(named("vision-tower"), listed(tower))
    bare = save_tiny_language_model(tmp_path / "l", chat_template=None)
    look_at_model(named("language-model"), listed(bare), template_given=True)
    with pytest.raises(UserError, match=r"set student\.composed\.languageModel\.chatTemplate"):
        look_at_model(named("language-model"), listed(bare))


def test_a_file_that_goes_while_it_is_looked_at(tmp_path: Path) -> None:
    listing = listed(save_tiny_llava(tmp_path))
    (tmp_path / "llava" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors was removed while it was looked at"):
        look_at_model(named(), listing)
