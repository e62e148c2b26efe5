"""Turns to token ids: the same prompt for training, generation and scoring.

The prompt is rendered by the model's own chat template with the generation prompt at its end, and the answer's ids are made
apart and joined to it, so that nothing has to be found again in the text (LLaVA's "tokenization mismatch" came from looking).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import ProcessorMixin

from comd_api.exit_codes import UserError
from comd_trainer.data.rows import Turn
from comd_trainer.models.load import LoadedModel

Encoded = dict[str, Tensor]
"""Model inputs of one row, without padding: `input_ids` and `attention_mask` (1, length), and what the image became, if any."""


def prompt_text(processor: Any, turns: Sequence[Turn], *, image: bool, field: str = "the model") -> str:
    """What the model reads, as text: history, question, and the mark after which it answers.

    The image stands first in the first user turn. Raises `UserError` for a model without chat template, and for an image
    with a model that takes none.
    """
    assert turns, "a prompt has a question"
    assert turns[-1].role == "user", "a prompt ends with a question"
    if not isinstance(processor, ProcessorMixin):
        if image:
            raise UserError(
                f"{field} is a text-only model and can't be asked about images; give an image-text-to-text model"
            )
        return _render(processor, [{"role": turn.role, "content": turn.text} for turn in turns], field=field)
    image_token = getattr(processor, "image_token", None)
    texts = [_without(turn.text, image_token) for turn in turns]
    if processor.chat_template is None:
        # A processor of before transformers 4.44: the tokenizer's template, which takes strings.
        contents: list[Any] = [f"{image_token}\n{text}" if image and i == 0 else text for i, text in enumerate(texts)]
        renderer = processor.tokenizer
    else:
        contents = [[{"type": "text", "text": text}] for text in texts]
        if image:
            contents[0] = [{"type": "image"}, *contents[0]]
        renderer = processor
    messages = [{"role": turn.role, "content": content} for turn, content in zip(turns, contents, strict=True)]
    return _render(renderer, messages, field=field)


def encode_prompt(loaded: LoadedModel, turns: Sequence[Turn], image: Image | None) -> Encoded:
    """Inputs of one prompt, as `apply_chat_template(tokenize=True)` gives them in a plain transformers session."""
    text = prompt_text(loaded.processor, turns, image=image is not None, field=loaded.field)
    return encode_text(loaded, text, image)


def encode_text(loaded: LoadedModel, text: str, image: Image | None) -> Encoded:
    """Inputs of a text that is rendered already, image token included.

    Special tokens in front are added where the template has not written them, as transformers' processors do; its tokenizers
    never add any to a rendered template.
    """
    if loaded.kind == "causal-lm":
        return dict(loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt"))
    bos = loaded.tokenizer.bos_token
    written = bos is not None and text.startswith(bos)
    images = {} if image is None else {"images": [image]}
    encoded = loaded.processor(text=[text], **images, add_special_tokens=not written, return_tensors="pt")
    return {name: value for name, value in encoded.items() if isinstance(value, Tensor)}


def encode_answer(loaded: LoadedModel, text: str) -> list[int]:
    """Ids of an answer that was cut off nowhere: its text, then the end mark."""
    return [*answer_ids(loaded, text), end_mark(loaded)]


def answer_ids(loaded: LoadedModel, text: str) -> list[int]:
    """Ids of an answer's text alone, made apart from the prompt."""
    return [int(token) for token in loaded.tokenizer(text, add_special_tokens=False)["input_ids"]]


def end_mark(loaded: LoadedModel) -> int:
    token = loaded.tokenizer.eos_token_id
    if token is None:
        raise UserError(
            f"{loaded.field}: the tokenizer has no eos_token, so that answers could not end; set one in its tokenizer_config.json"
        )
    return int(token)


def stop_token_ids(loaded: LoadedModel) -> list[int]:
    """Tokens that end an answer: the tokenizer's end mark and those of the generation config."""
    configured = loaded.model.generation_config.eos_token_id if loaded.model.generation_config is not None else None
    more = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return sorted({end_mark(loaded), *(int(token) for token in more)})


def decode_answer(loaded: LoadedModel, ids: Sequence[int] | Tensor) -> str:
    """Text of new tokens alone (never of prompt and answer together)."""
    return str(loaded.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def stack(rows: Sequence[Mapping[str, Tensor]], *, side: str, pad_token_id: int) -> Encoded:
    """Joins rows of length L_i into a batch (rows, max L).

    Inputs that run along the tokens (same shape as `input_ids`) are padded on `side`; what the images became is joined row
    after row, filled with zeros up to the largest where sizes differ, and left out for rows without image.
    """
    length = max(row["input_ids"].shape[1] for row in rows)
    batch: Encoded = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = []
        along_tokens = name not in _IMAGE_INPUTS and all(
            row[name].shape == row["input_ids"].shape for row in rows if name in row
        )
        for row in rows:
            if along_tokens:
                value = row[name] if name in row else torch.zeros_like(row["input_ids"])
                missing = length - value.shape[1]
                fill = {"input_ids": pad_token_id, "labels": IGNORED}.get(name, 0)
                values.append(pad(value, (missing, 0) if side == "left" else (0, missing), value=fill))
            elif name in row:
                values.append(row[name])
        batch[name] = torch.cat(values if along_tokens else _same_size(values))
    return batch


def to_device(batch: Encoded, *, device: torch.device | str, dtype: torch.dtype) -> Encoded:
    """Moves a batch; floating point inputs (pixels) take the model's `dtype`."""
    return {
        name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
        for name, value in batch.items()
    }


IGNORED = -100
"""Label of a position that is not supervised."""

_IMAGE_INPUTS = frozenset({"pixel_values", "image_sizes", "image_grid_thw"})


def _same_size(values: list[Tensor]) -> list[Tensor]:
    """Fills dimensions after the first with zeros up to the largest, as image processors do within one call."""
    largest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    filled = []
    for value in values:
        gaps = [(0, want - have) for want, have in zip(largest, value.shape[1:], strict=True)]
        filled.append(pad(value, [edge for gap in reversed(gaps) for edge in gap]))
    return filled


def _without(text: str, image_token: str | None) -> str:
    """Text of a turn without the image token: LLaVA's data carry it in the first question, the template writes it."""
    return text.replace(image_token, "").strip() if image_token and image_token in text else text


def _render(renderer: Any, messages: list[dict[str, Any]], *, field: str) -> str:
    if renderer.chat_template is None:
        raise UserError(
            f"{field}: the tokenizer has no chat template, so that it is not known how to ask; add chat_template.jinja to the checkpoint "
            "(or set student.composed.languageModel.chatTemplate)"
        )
    return str(renderer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
