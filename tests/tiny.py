"""Tiny models with random weights, made from configs in memory: no network, a few milliseconds each.

The tokenizer is a byte-level BPE that knows every byte and a few merges, so any text goes through it unchanged. The vision tower
is a CLIP of 32 pixels with patches of 16: an image is 4 patch tokens, plus the class token with `features: Full`.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from comd_api.roles import ComposedStudent, LanguageModel, Projector, VisionTower
from comd_trainer.data.rows import Turn
from comd_trainer.models.compose import compose
from comd_trainer.models.load import LoadedModel, load_model
from comd_trainer.models.save import save_model

ProjectorType = Literal["Linear", "MLP"]
Features = Literal["Patch", "Full"]

IMAGE_SIZE = 32
PATCH_SIZE = 16
HIDDEN_SIZE = 32
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + '\\n' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
"""As a text model's template is: content is a string, and it knows nothing of images."""

CORPUS = (
    "USER: what is the color of this image? ASSISTANT: the image is red",
    "a photo of a blue square",
    "yes no 0 1 2 3",
)


def tiny_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """About 300 tokens, `<s>` in front of every text, `</s>` as end mark, and no padding token: as Llama's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    fast.chat_template = chat_template
    return fast


def save_tiny_vision_tower(folder: Path, *, seed: int = 1) -> Path:
    """A CLIP vision model of three layers with its image processor."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=HIDDEN_SIZE,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=16,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(folder)
    return folder


def save_tiny_language_model(
    folder: Path, *, seed: int = 2, chat_template: str | None = CHAT_TEMPLATE, tied: bool = False, num_layers: int = 2
) -> Path:
    """A Llama with its tokenizer."""
    tokenizer = tiny_tokenizer(chat_template=chat_template)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_composed(
    *, projector: ProjectorType = "Linear", features: Features = "Patch", chat_template: str | None = None
) -> ComposedStudent:
    """`spec.student.composed` over the folders `vision` and `language`."""
    return ComposedStudent(
        vision_tower=VisionTower(source="vision", features=features),
        projector=Projector(type=projector),
        language_model=LanguageModel(source="language", chat_template=chat_template),
    )


def tiny_llava(
    folder: Path, *, projector: ProjectorType = "MLP", features: Features = "Patch", seed: int = 0, tied: bool = False
) -> LoadedModel:
    """A LLaVA composed of the two above, whose parts are left in `folder`."""
    return compose(
        tiny_composed(projector=projector, features=features),
        vision_folder=save_tiny_vision_tower(folder / "vision", seed=seed + 1),
        language_folder=save_tiny_language_model(folder / "language", seed=seed + 2, tied=tied),
        seed=seed,
    )


def save_tiny_llava(
    folder: Path, *, projector: ProjectorType = "MLP", features: Features = "Patch", seed: int = 0, tied: bool = False
) -> Path:
    """The same as a checkpoint in Hugging Face layout: `folder/llava`, with the parts beside it."""
    loaded = tiny_llava(folder, projector=projector, features=features, seed=seed, tied=tied)
    save_model(loaded.model, loaded.processor, folder / "llava")
    return folder / "llava"


def load_tiny(folder: Path) -> LoadedModel:
    return load_model(folder, dtype=torch.float32, device="cpu", field="spec.student.checkpoint.source")


def tiny_image(seed: int = 0, *, size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)) -> Image.Image:
    """Noise over one color: (width, height) RGB."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 40, size=(size[1], size[0], 3)) + generator.integers(0, 215, size=3)
    return Image.fromarray(pixels.astype(np.uint8), "RGB")


def ask(text: str, *history: str) -> tuple[Turn, ...]:
    """Turns that end with the question `text`; `history` is question, answer, question, answer …"""
    roles: tuple[Literal["user", "assistant"], ...] = ("user", "assistant") * (len(history) // 2 + 1)
    return tuple(Turn(role=role, text=words) for role, words in zip(roles, [*history, text], strict=False))


def num_image_tokens(loaded: LoadedModel, ids: torch.Tensor) -> int:
    """How many of the input ids (1, length) stand for a part of an image."""
    assert loaded.image_token_id is not None
    return int((ids == loaded.image_token_id).sum())
