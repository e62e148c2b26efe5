"""A student put together from parts is a LLaVA that a plain transformers session opens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from comd_api.exit_codes import UserError
from comd_trainer.models.compose import compose
from comd_trainer.models.freeze import component_of, freeze
from comd_trainer.models.load import LoadedModel, load_model
from comd_trainer.models.prompts import encode_prompt, prompt_text
from comd_trainer.models.save import plan_shards, save_model
from tests.tiny import (
    CHAT_TEMPLATE,
    HIDDEN_SIZE,
    NUM_PATCHES,
    Features,
    ask,
    load_tiny,
    num_image_tokens,
    save_tiny_language_model,
    save_tiny_vision_tower,
    tiny_composed,
    tiny_image,
    tiny_llava,
)

QUESTION = ask("What is the color?", "Is this a square?", "yes")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return tiny_llava(tmp_path_factory.mktemp("parts"))


def logits(loaded: LoadedModel) -> torch.Tensor:
    with torch.no_grad():
        scores: torch.Tensor = loaded.model(**encode_prompt(loaded, QUESTION, tiny_image(7))).logits
    return scores


def composed(folder: Path, *, chat_template: str | None = None, seed: int = 0) -> LoadedModel:
    return compose(
        tiny_composed(chat_template=chat_template),
        vision_folder=folder / "vision",
        language_folder=folder / "language",
        seed=seed,
    )


PLAIN_SESSION = """
import json, sys
for name in ("comd_api", "comd_trainer", "comd_operator"):
    sys.modules[name] = None  # Importing it now fails.
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
image = Image.open(sys.argv[1])
for folder in sys.argv[2:]:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    chat = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Is this a square?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": [{"type": "text", "text": "What is the color?"}]},
    ]
    inputs = processor.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > inputs["input_ids"].shape[1]
    print(json.dumps({"ids": inputs["input_ids"].tolist(), "logits": model(**inputs).logits.tolist()}))
"""


def test_a_saved_student_opens_in_a_plain_session_with_the_same_logits(tmp_path: Path) -> None:
    students = {}
    for tied in (False, True):
        loaded = tiny_llava(tmp_path / f"parts-{tied}", tied=tied)
        folder = tmp_path / f"student-{tied}"
        save_model(loaded.model, loaded.processor, folder, shard_bytes=40_000)
        assert len(list(folder.glob("model-*.safetensors"))) > 2
        torch.testing.assert_close(logits(load_tiny(folder)), logits(loaded), rtol=0, atol=0)
        students[folder] = loaded
    tiny_image(7).save(tmp_path / "image.png")
    command = [sys.executable, "-c", PLAIN_SESSION, str(tmp_path / "image.png"), *map(str, students)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    for line, loaded in zip(lines[-2:], students.values(), strict=True):
        answer = json.loads(line)
        assert answer["ids"] == encode_prompt(loaded, QUESTION, tiny_image(7))["input_ids"].tolist()
        torch.testing.assert_close(torch.tensor(answer["logits"]), logits(loaded), rtol=1e-5, atol=1e-5)


def test_parts_are_kept_as_they_are(llava: LoadedModel, tmp_path: Path) -> None:
    save_tiny_language_model(tmp_path / "language", seed=2)
    original = LlamaForCausalLM.from_pretrained(tmp_path / "language")
    rows = original.config.vocab_size
    torch.testing.assert_close(llava.model.lm_head.weight[:rows], original.lm_head.weight)
    torch.testing.assert_close(llava.model.model.language_model.norm.weight, original.model.norm.weight)


def test_a_saved_student_does_not_depend_on_where_its_parts_lay(tmp_path: Path) -> None:
    for place in ("here", "there"):
        student = tiny_llava(tmp_path / place)
        save_model(student.model, student.processor, tmp_path / f"student-{place}")
    here, there = (
        {path.name: path.read_bytes() for path in (tmp_path / f"student-{place}").iterdir()}
        for place in ("here", "there")
    )
    assert here == there


def test_the_projector_comes_from_the_seed_alone(tmp_path: Path) -> None:
    save_tiny_vision_tower(tmp_path / "vision")
    save_tiny_language_model(tmp_path / "language")
    torch.manual_seed(1)
    first = composed(tmp_path, seed=5).model.state_dict()
    torch.manual_seed(2)
    again = composed(tmp_path, seed=5).model.state_dict()
    other = composed(tmp_path, seed=6).model.state_dict()
    name = "model.multi_modal_projector.linear_1.weight"
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first[name], other[name])


def test_a_linear_projector_is_one_matrix(tmp_path: Path) -> None:
    loaded = tiny_llava(tmp_path, projector="Linear")
    learning = freeze(loaded.model, ["Projector"], field="trainable")
    assert sum(value.numel() for _, value in learning) == HIDDEN_SIZE * HIDDEN_SIZE + HIDDEN_SIZE
    projector = loaded.model.model.multi_modal_projector
    features = torch.randn(3, HIDDEN_SIZE)
    expected = features @ projector.linear_1.weight.T + projector.linear_1.bias
    torch.testing.assert_close(projector(features), expected)


def test_an_mlp_projector_is_two_layers(llava: LoadedModel) -> None:
    learning = freeze(llava.model, ["Projector"], field="trainable")
    assert [name.rsplit(".", 2)[-2] for name, _ in learning] == ["linear_1", "linear_1", "linear_2", "linear_2"]
    assert llava.model.config.projector_hidden_act == "gelu"


@pytest.mark.parametrize(("features", "num_tokens"), [("Patch", NUM_PATCHES), ("Full", NUM_PATCHES + 1)])
def test_image_tokens_match_the_features(tmp_path: Path, features: Features, num_tokens: int) -> None:
    loaded = tiny_llava(tmp_path, features=features)
    ids = encode_prompt(loaded, ask("What?"), tiny_image(size=(50, 40)))["input_ids"]
    assert num_image_tokens(loaded, ids) == num_tokens == loaded.model.config.image_seq_length
    logits(loaded)


def test_a_whole_clip_and_a_siglip_give_their_vision_model(tmp_path: Path) -> None:
    save_tiny_language_model(tmp_path / "language")
    config = vision_config_of(save_tiny_vision_tower(tmp_path / "tower"))
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 99,
    }
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=config, projection_dim=16))
    whole.save_pretrained(tmp_path / "vision")
    CLIPImageProcessor.from_pretrained(tmp_path / "tower").save_pretrained(tmp_path / "vision")
    loaded = composed(tmp_path)
    tower = loaded.model.model.vision_tower.state_dict()
    for name, value in whole.vision_model.state_dict().items():
        match = [key for key in tower if key.endswith(name)]
        assert len(match) == 1, name
        assert torch.equal(tower[match[0]], value)
    logits(loaded)

    siglip = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=16
    )
    SiglipVisionModel(siglip).save_pretrained(tmp_path / "sig")
    CLIPImageProcessor.from_pretrained(tmp_path / "tower").save_pretrained(tmp_path / "sig")
    loaded = compose(tiny_composed(), vision_folder=tmp_path / "sig", language_folder=tmp_path / "language", seed=0)
    ids = encode_prompt(loaded, ask("What?"), tiny_image())["input_ids"]
    assert num_image_tokens(loaded, ids) == NUM_PATCHES
    logits(loaded)
    save_model(loaded.model, loaded.processor, tmp_path / "student")
    torch.testing.assert_close(logits(load_tiny(tmp_path / "student")), logits(loaded), rtol=0, atol=0)


def vision_config_of(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "config.json").read_text()))


def test_pad_token_differs_from_the_end_mark(llava: LoadedModel) -> None:
    tokenizer, generation = llava.tokenizer, llava.model.generation_config
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert generation.pad_token_id == tokenizer.pad_token_id
    assert generation.eos_token_id == tokenizer.eos_token_id
    assert generation.bos_token_id == tokenizer.bos_token_id
    embeddings = llava.model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    assert len(tokenizer) <= embeddings.weight.shape[0]


def test_the_chat_template_takes_strings_and_lists(llava: LoadedModel) -> None:
    as_list = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    as_text = [{"role": "user", "content": "hi"}]
    render = llava.processor.apply_chat_template
    assert render(as_list) == render(as_text) == "USER: hi\n"
    assert prompt_text(llava.processor, QUESTION, image=True) == (
        "USER: <image>\nIs this a square?\nASSISTANT: yes</s>USER: What is the color?\nASSISTANT: "
    )


def test_the_manifests_chat_template_serves_a_tokenizer_without(tmp_path: Path) -> None:
    save_tiny_vision_tower(tmp_path / "vision")
    save_tiny_language_model(tmp_path / "language", chat_template=None)
    with pytest.raises(UserError, match=r"languageModel.chatTemplate is not set"):
        composed(tmp_path)
    loaded = composed(tmp_path, chat_template=CHAT_TEMPLATE)
    assert prompt_text(loaded.processor, ask("hi"), image=False) == "USER: hi\nASSISTANT: "


@pytest.mark.parametrize("part", ["vision", "language"])
def test_pickled_parts_are_refused(tmp_path: Path, part: str) -> None:
    save_tiny_vision_tower(tmp_path / "vision")
    save_tiny_language_model(tmp_path / "language")
    (tmp_path / part / "model.safetensors").rename(tmp_path / part / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"spec.student.composed.*only pytorch_model.bin.*safetensors"):
        composed(tmp_path)


def test_a_feature_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    save_tiny_vision_tower(tmp_path / "vision")
    save_tiny_language_model(tmp_path / "language")
    student = tiny_composed()
    student = student.replace(vision_tower=student.vision_tower.replace(feature_layer=-9))
    with pytest.raises(UserError, match=r"featureLayer is -9, but the vision model has 3 layers"):
        compose(student, vision_folder=tmp_path / "vision", language_folder=tmp_path / "language", seed=0)


def refused(folder: Path, match: str) -> None:
    with pytest.raises(UserError, match=match):
        load_model(folder, dtype="auto", device="cpu", field="spec.teacher.checkpoint.source")


def test_checkpoints_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_language_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    refused(folder, r"spec.teacher.checkpoint.source: the checkpoint in model can't be opened")
    from safetensors.torch import save_file

    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, r"lacks 1 of the model's weights, such as model.norm.weight")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "ours", "auto_map": {"AutoConfig": "x.C"}}))
    refused(folder, "set trustRemoteCode")
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")


def test_components_cover_every_parameter(llava: LoadedModel) -> None:
    found = {component_of(name) for name, _ in llava.model.named_parameters()}
    assert found == {"VisionTower", "Projector", "LanguageModel"}
    freeze(llava.model, ["VisionTower"], field="trainable")
    assert {component_of(name) for name, value in llava.model.named_parameters() if value.requires_grad} == {
        "VisionTower"
    }


def test_unknown_components_are_refused(tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(save_tiny_language_model(tmp_path))
    with pytest.raises(
        UserError, match=r"spec.training.trainable names Projector, but the student \(LlamaForCausalLM\)"
    ):
        freeze(model, ["Projector"], field="spec.training.trainable")


def test_shards_are_filled_in_order() -> None:
    sizes = [("a", 3), ("b", 3), ("c", 5), ("d", 20), ("e", 1)]
    assert plan_shards(sizes, limit=8) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert plan_shards(sizes, limit=100) == [["a", "b", "c", "d", "e"]]


def test_saving_in_half_precision_says_so(llava: LoadedModel, tmp_path: Path) -> None:
    save_model(llava.model, llava.processor, tmp_path, dtype=torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
