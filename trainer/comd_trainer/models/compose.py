"""Puts a student together the LLaVA way: vision tower, random projector, language model (method section 12, row 1).

The result is a plain `LlavaForConditionalGeneration` with a `LlavaProcessor`: what transformers, vLLM and every other tool
opens without code of ours.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from comd_api.exit_codes import UserError
from comd_api.roles import ComposedStudent
from comd_api.roles import VisionTower as VisionTowerSpec
from comd_trainer.models.load import LoadedModel, check_safetensors, load_config, refuse_missing

IMAGE_TOKEN = "<image>"
PAD_TOKEN = "<pad>"
VISION_FIELD = "spec.student.composed.visionTower.source"
LANGUAGE_FIELD = "spec.student.composed.languageModel.source"
TEMPLATE_FIELD = "spec.student.composed.languageModel.chatTemplate"

FLATTEN = (
    "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set flat.messages = flat.messages + [message] -%}"
    "{%- else -%}{%- set parts = namespace(text='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set parts.text = parts.text + '<image>\\n' -%}"
    "{%- elif part['type'] == 'text' -%}{%- set parts.text = parts.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=parts.text)] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)
"""Put before a text model's template, so that it takes the content lists of image-text-to-text models."""


def compose(
    student: ComposedStudent,
    *,
    vision_folder: Path,
    language_folder: Path,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """The student before any training: towers as they are, projector drawn from `seed`, on the CPU.

    `<image>` and a padding token join the vocabulary where they are missing. Raises `UserError` for parts that do not fit:
    pickled weights, a vision model without hidden layer `featureLayer`, a tokenizer without chat template or end mark.
    """
    tower = load_vision_tower(vision_folder, dtype=dtype)
    language = _load_part(AutoModelForCausalLM, language_folder, dtype=dtype, field=LANGUAGE_FIELD)
    tokenizer: Any = AutoTokenizer.from_pretrained(language_folder, local_files_only=True)
    template = _chat_template(student, tokenizer, language_folder)
    if tokenizer.eos_token is None:
        raise UserError(
            f"{LANGUAGE_FIELD}: the tokenizer in {language_folder.name} has no eos_token, so that answers could not end"
        )
    _add_tokens(tokenizer, language)

    geometry = _Geometry(student.vision_tower, tower.config)
    config = LlavaConfig(
        vision_config=_fields(tower.config),
        text_config=_fields(language.config),
        image_token_index=int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)),
        image_seq_length=geometry.num_tokens,
        projector_hidden_act="linear" if student.projector.type == "Linear" else "gelu",
        vision_feature_select_strategy=geometry.strategy,
        vision_feature_layer=student.vision_tower.feature_layer,
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
    )
    model = _assemble(config, tower=tower, language=language, seed=seed, dtype=dtype)
    model.generation_config = _generation_config(language, tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id

    model.train(False)
    tokenizer.chat_template = None  # The processor's alone: two templates in one folder would be one too many.
    processor = LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor=AutoImageProcessor.from_pretrained(vision_folder, local_files_only=True),  # type: ignore[no-untyped-call]
        tokenizer=tokenizer,
        patch_size=geometry.patch_size,
        vision_feature_select_strategy=geometry.strategy,
        num_additional_image_tokens=geometry.num_additional,
        chat_template=FLATTEN + template,
    )
    return LoadedModel(model=model, processor=processor, kind="image-text-to-text", field="spec.student.composed")


def _fields(config: Any) -> dict[str, Any]:
    """A part's config without the folder that it was read from: the student's bytes must not depend on where that lay."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def load_vision_tower(folder: Path, *, dtype: torch.dtype) -> Any:
    """The vision half of a CLIP or SigLIP checkpoint, or a checkpoint that is a vision model alone."""
    config = load_config(folder, field=VISION_FIELD)
    if not hasattr(config, "vision_config") and not hasattr(config, "patch_size"):
        raise UserError(
            f"{VISION_FIELD}: {folder.name} is a {config.model_type} model, not a CLIP or SigLIP vision model"
        )
    model = _load_part(AutoModel, folder, dtype=dtype, field=VISION_FIELD)
    return getattr(model, "vision_model", model) if hasattr(config, "vision_config") else model


class _Geometry:
    """How many tokens an image becomes, from the tower's config alone."""

    def __init__(self, spec: VisionTowerSpec, config: Any) -> None:
        if not -config.num_hidden_layers - 1 <= spec.feature_layer <= config.num_hidden_layers:
            raise UserError(
                f"spec.student.composed.visionTower.featureLayer is {spec.feature_layer}, but the vision model has "
                f"{config.num_hidden_layers} layers; use one from {-config.num_hidden_layers - 1} to {config.num_hidden_layers}"
            )
        has_class_token = "siglip" not in config.model_type
        if isinstance(config.image_size, int):
            height = width = config.image_size
        else:
            height, width = config.image_size
        self.patch_size = int(config.patch_size)
        # SigLIP has no class token to drop: "default" would drop a patch.
        self.strategy: Literal["default", "full"] = (
            "default" if spec.features == "Patch" and has_class_token else "full"
        )
        self.num_additional = int(has_class_token)
        num_patches = (height // self.patch_size) * (width // self.patch_size)
        self.num_tokens = num_patches + (1 if self.strategy == "full" and has_class_token else 0)


def _load_part(auto_class: Any, folder: Path, *, dtype: torch.dtype, field: str) -> Any:
    check_safetensors(folder, field=field)
    load_config(folder, field=field)
    try:
        model, report = auto_class.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{field}: the checkpoint in {folder.name} can't be opened: {str(error).splitlines()[0]}"
        ) from error
    refuse_missing(report, folder=folder, field=field)
    return model


def _chat_template(student: ComposedStudent, tokenizer: Any, folder: Path) -> str:
    template = student.language_model.chat_template or tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is None:
        raise UserError(
            f"{TEMPLATE_FIELD} is not set, and the tokenizer in {folder.name} has no chat template of its own; "
            "set the one that the language model was trained with"
        )
    return str(template)


def _add_tokens(tokenizer: Any, language: Any) -> None:
    """`<image>`, and a padding token that differs from the end mark (else end marks would be taken for padding)."""
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    rows = language.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        # The mean of the old rows, without noise: the seed decides the projector and nothing else.
        language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        _fill_with_mean(language.get_input_embeddings().weight, rows)
        if not language.config.tie_word_embeddings:
            _fill_with_mean(language.get_output_embeddings().weight, rows)


@torch.no_grad()
def _fill_with_mean(weight: torch.Tensor, num_old: int) -> None:
    weight[num_old:] = weight[:num_old].float().mean(dim=0).to(weight.dtype)


def _assemble(
    config: LlavaConfig, *, tower: PreTrainedModel, language: Any, seed: int, dtype: torch.dtype
) -> LlavaForConditionalGeneration:
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.language_model = language.model
    model.lm_head = language.lm_head
    projector = model.model.multi_modal_projector.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for linear in (projector.linear_1, projector.linear_2):
        bound = linear.in_features**-0.5
        for parameter in (linear.weight, linear.bias):
            parameter.data.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    if config.projector_hidden_act == "linear":
        # One matrix, as LLaVA v1: transformers' class has two, so the second is the identity and stays so (freeze.py).
        with torch.no_grad():
            projector.linear_2.weight.copy_(torch.eye(projector.linear_2.in_features))
            projector.linear_2.bias.zero_()
    model.tie_weights()
    return model


def _generation_config(language: Any, tokenizer: Any) -> GenerationConfig:
    """The language model's, with the tokens of our tokenizer; an end mark of its own (such as an end of turn) is kept."""
    config: GenerationConfig = language.generation_config or GenerationConfig()  # type: ignore[no-untyped-call]
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    eos = sorted({tokenizer.eos_token_id, *(token for token in ends if token is not None)})
    config.eos_token_id = eos[0] if len(eos) == 1 else eos
    config.bos_token_id = tokenizer.bos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return config
