"""The three tiny models of the example, trained from nothing on the train split's handwriting: a teacher and the
student's two parts.

All of them are ordinary transformers models (LLaVA, CLIP, Llama), so that the operator and the trainer treat them as
they would treat real ones. Every training here is a few hundred steps of AdamW on one core; `initializer_range` 0.08
instead of the library's 0.02 is what makes that enough, because 0.02 is meant for wide models and leaves attention
almost flat at width 128.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import world
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

PAD, BOS, EOS, UNK, IMAGE = "<pad>", "<bos>", "<eos>", "<unk>", "<image>"
IMAGE_TOKENS = 4
IMAGE_START = 2
"""Where the picture stands in every prompt: after `<bos> user`."""
MEAN, STD = 0.3, 0.35
"""Grey level (0..1) that the towers see as zero, and how many grey levels they see as one."""
MAX_ANSWER = 12
"""Tokens that suffice for every answer; the longest has 8 and its end mark."""
EMPTY = 10
"""Class of an empty cell in the towers' pre-training; 0-9 are the digits."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} {{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} assistant {% endif %}"
)

Progress = Callable[[int, int, float], None]
"""Told (step, steps, loss) after every step."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sizes and training lengths of a vision tower with a language model. Times are for one quiet core."""

    tower_width: int
    tower_layers: int
    tower_steps: int
    width: int
    layers: int
    steps: int
    batch: int = 32
    rate: float = 2e-3


TEACHER = Recipe(tower_width=96, tower_layers=3, tower_steps=300, width=128, layers=4, steps=900)
STUDENT = Recipe(tower_width=48, tower_layers=2, tower_steps=150, width=80, layers=3, steps=200)

TEACHER_MIX = {
    "read": 0.10,
    "count": 0.06,
    "list": 0.14,
    "parity": 0.12,
    "largest": 0.10,
    "smallest": 0.10,
    "compare": 0.14,
    "sum": 0.24,
}
"""What the teacher practises: sums most, because they are a table of a hundred entries to learn."""
CAPTION_SHARE = 0.3
"""Share of captions, as against questions, among the texts that the language model reads."""


def make_tokenizer(*, image: bool) -> PreTrainedTokenizerFast:
    """One token a word, split on spaces. `image` adds the image token, last, which a plain language model does not
    have."""
    entries = [PAD, BOS, EOS, UNK, *world.vocabulary()] + ([IMAGE] if image else [])
    core = Tokenizer(WordLevel({entry: number for number, entry in enumerate(entries)}, unk_token=UNK))
    core.pre_tokenizer = WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast  # untyped in the library
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[IMAGE] if image else [],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=128,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_image_processor() -> CLIPImageProcessor:
    """Canvases are already 32x32, so nothing is resized or cropped: grey to three channels, 0..1, then (x - mean) /
    std."""
    return CLIPImageProcessor(
        do_resize=False,
        do_center_crop=False,
        size={"height": world.SIDE, "width": world.SIDE},
        crop_size={"height": world.SIDE, "width": world.SIDE},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )


def to_pixels(canvases: NDArray[np.uint8]) -> Tensor:
    """(n, 32, 32) grey levels to the (n, 3, 32, 32) that the image processor would make of them."""
    grey = (torch.from_numpy(canvases).float() / 255 - MEAN) / STD
    return grey[:, None].expand(-1, 3, -1, -1).contiguous()


class Lexicon:
    """Words to token numbers. A word outside the vocabulary is a KeyError here, never a silent `<unk>`."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.numbers: dict[str, int] = dict(tokenizer.get_vocab())

    def sample(self, picture: Sequence[str], prompt: str, target: str) -> tuple[list[int], int]:
        """Token numbers of one finished exchange, and how many of them come before the answer. `picture` is four words
        or image tokens."""
        before = [BOS, "user", *picture, *prompt.split(), "assistant"]
        return [self.numbers[word] for word in (*before, *target.split(), EOS)], len(before)

    def batch(self, samples: Iterable[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
        """Ids and labels, both (samples, longest), padded right; labels are -100 before the answer and on padding."""
        rows = list(samples)
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), longest), self.numbers[PAD])
        labels = torch.full_like(ids, -100)
        for row, (words, before) in enumerate(rows):
            ids[row, : len(words)] = torch.tensor(words)
            labels[row, before : len(words)] = torch.tensor(words[before:])
        return ids, labels


def fit(
    parameters: Iterable[nn.Parameter], loss_of: Callable[[], Tensor], *, steps: int, rate: float, progress: Progress
) -> None:
    """AdamW with 5 % warm-up, cosine to 5 % of the rate, and gradients clipped at 1. `loss_of` draws its own batch."""
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    warmup = max(1, steps // 20)
    for step in range(steps):
        through = max(0.0, (step - warmup) / max(1, steps - warmup))
        factor = min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * (1 + math.cos(math.pi * through)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        loss = loss_of()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress(step + 1, steps, loss.item())


def tower_config(recipe: Recipe) -> CLIPVisionConfig:
    """A CLIP vision tower with one patch per cell."""
    return CLIPVisionConfig(
        hidden_size=recipe.tower_width,
        intermediate_size=2 * recipe.tower_width,
        num_hidden_layers=recipe.tower_layers,
        num_attention_heads=4,
        image_size=world.SIDE,
        patch_size=world.CELL,
        projection_dim=recipe.tower_width,
    )


def train_tower(
    recipe: Recipe, canvases: NDArray[np.uint8], cells: Sequence[world.Cells], *, seed: int, progress: Progress
) -> CLIPVisionModel:
    """Pre-train a tower to name each cell's content from that cell's own patch feature; the linear head is thrown
    away."""
    torch.manual_seed(seed)
    tower = CLIPVisionModel(tower_config(recipe))
    head = nn.Linear(recipe.tower_width, EMPTY + 1)
    pixels = to_pixels(canvases)
    classes = torch.tensor([[EMPTY if digit is None else digit for digit in four] for four in cells])
    rng = np.random.default_rng([seed, 1])

    def loss_of() -> Tensor:
        rows = torch.from_numpy(rng.integers(len(pixels), size=64))
        logits = head(tower(pixel_values=pixels[rows]).last_hidden_state[:, 1:])
        return nn.functional.cross_entropy(logits.flatten(0, 1), classes[rows].flatten())

    fit([*tower.parameters(), *head.parameters()], loss_of, steps=recipe.tower_steps, rate=1e-3, progress=progress)
    tower.train(False)
    return tower


@torch.no_grad()
def patch_features(tower: CLIPVisionModel, canvases: NDArray[np.uint8]) -> Tensor:
    """The tower's last layer without the class token, (n, 4, width): what LLaVA's `default` strategy hands to the
    projector."""
    parts = [
        tower(pixel_values=to_pixels(canvases[start : start + 500])).last_hidden_state[:, 1:]
        for start in range(0, len(canvases), 500)
    ]
    return torch.cat(parts)


def language_config(recipe: Recipe, *, entries: int) -> LlamaConfig:
    """A narrow Llama with tied embeddings; token numbers as in `make_tokenizer`."""
    return LlamaConfig(
        vocab_size=entries,
        hidden_size=recipe.width,
        intermediate_size=2 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.08,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def set_generation(model: LlamaForCausalLM | LlavaForConditionalGeneration) -> None:
    """A model made from a config gets no stop token by itself: without this, answers never end."""
    model.generation_config.pad_token_id = 0
    model.generation_config.bos_token_id = 1
    model.generation_config.eos_token_id = 2


def train_language_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, *, seed: int, progress: Progress
) -> LlamaForCausalLM:
    """Pre-train on *text worlds*: canvases told in four words in place of a picture, asked about in the seed's own
    unequal shares.

    So the language model can talk about canvases, and knows rare skills less well than common ones, before it has seen
    a picture.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(language_config(recipe, entries=len(tokenizer)))
    set_generation(model)
    lexicon = Lexicon(tokenizer)
    rng = np.random.default_rng([seed, 2])

    def sample() -> tuple[list[int], int]:
        cells = world.draw_cells(rng)
        if rng.random() < CAPTION_SHARE:
            prompt = world.CAPTION_PROMPTS[int(rng.integers(len(world.CAPTION_PROMPTS)))]
            return lexicon.sample(world.cell_words(cells), prompt, world.caption(cells))
        question = world.draw_question(rng, world.SEED_MIX)
        return lexicon.sample(world.cell_words(cells), question.text, world.answer(question, cells))

    def loss_of() -> Tensor:
        ids, labels = lexicon.batch(sample() for _ in range(recipe.batch))
        return answer_loss(model.model(input_ids=ids, use_cache=False).last_hidden_state, model.lm_head, labels)

    fit(model.parameters(), loss_of, steps=recipe.steps, rate=recipe.rate, progress=progress)
    model.train(False)
    return model


def answer_loss(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the supervised tokens. `hidden` (batch, length, width); only positions before a label reach
    the head."""
    wanted = labels[:, 1:] != -100
    return nn.functional.cross_entropy(head(hidden[:, :-1][wanted]), labels[:, 1:][wanted])


def teacher_config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """LLaVA of the two parts, with the library's two-layer projector and four image tokens."""
    return LlavaConfig(
        vision_config=tower_config(recipe),
        text_config=language_config(recipe, entries=len(tokenizer)),
        image_token_index=tokenizer.get_vocab()[IMAGE],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )


def train_teacher(
    recipe: Recipe,
    tower: CLIPVisionModel,
    canvases: NDArray[np.uint8],
    cells: Sequence[world.Cells],
    *,
    seed: int,
    progress: Progress,
) -> LlavaForConditionalGeneration:
    """Train projector and language model on ground truth over a frozen tower (whose features are
    computed once)."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(image=True)
    model = LlavaForConditionalGeneration(teacher_config(recipe, tokenizer))
    set_generation(model)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    language, projector = model.model.language_model, model.model.multi_modal_projector
    features = patch_features(tower, canvases)
    lexicon = Lexicon(tokenizer)
    rng = np.random.default_rng([seed, 3])

    def loss_of() -> Tensor:
        rows = rng.integers(len(canvases), size=recipe.batch)
        drawn = [(int(row), world.draw_question(rng, TEACHER_MIX)) for row in rows]
        ids, labels = lexicon.batch(
            lexicon.sample([IMAGE] * IMAGE_TOKENS, question.text, world.answer(question, cells[row]))
            for row, question in drawn
        )
        words = language.embed_tokens(ids)
        seen = projector(features[torch.from_numpy(rows)])
        embeds = torch.cat([words[:, :IMAGE_START], seen, words[:, IMAGE_START + IMAGE_TOKENS :]], dim=1)
        return answer_loss(language(inputs_embeds=embeds, use_cache=False).last_hidden_state, model.lm_head, labels)

    fit(
        [*projector.parameters(), *language.parameters()],
        loss_of,
        steps=recipe.steps,
        rate=recipe.rate,
        progress=progress,
    )
    model.train(False)
    return model


def make_processor() -> LlavaProcessor:
    """Tokenizer, image processor and chat template in one, as a teacher checkpoint carries them."""
    make: Any = LlavaProcessor  # untyped in the library
    processor: LlavaProcessor = make(
        image_processor=make_image_processor(),
        tokenizer=make_tokenizer(image=True),
        patch_size=world.CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return processor


def save_teacher(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """A checkpoint that AutoModelForImageTextToText and AutoProcessor open."""
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
