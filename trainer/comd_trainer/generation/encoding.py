"""Requests to model inputs, quickly: templates rendered once, images processed in batches, tokens not made twice.

Processors work row by row at about a millisecond each, which is what a small model waits for. For a processor that
turns images of one size into pixels of one shape and its image token into a fixed number of copies (LLaVA's, say),
text and pixels can be made apart. Whether a processor does so is not looked up but shown: the quick way must give the
slow way's tensors once for each size.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from comd_trainer.data.images import Images
from comd_trainer.data.rows import Turn
from comd_trainer.generation.base import Request
from comd_trainer.models.load import LoadedModel
from comd_trainer.models.prompts import Encoded, encode_text, prompt_text

PIXEL_BYTES = 512 * 2**20
"""How much of processed images is kept for questions on the same image."""

Size = tuple[int, int]


class PromptEncoder:
    """Not for several threads at once."""

    def __init__(self, loaded: LoadedModel, images: Images | None) -> None:
        self.loaded, self.images = loaded, images
        self.text = lru_cache(maxsize=1 << 15)(self._text)
        self._length = lru_cache(maxsize=1 << 20)(self._num_text_tokens)
        self._ids = lru_cache(maxsize=1 << 12)(self._make_ids)
        self._pixels = PixelCache()
        self._copies: dict[Size, int | None] = {}
        """By (width, height): how many image tokens such an image becomes; None where only the processor can tell."""

    def num_tokens(self, request: Request) -> int:
        """Length of the prompt with the image counted as one token: what batches are sorted by."""
        return self._length(self.text(request.turns, request.image is not None))

    def encode(self, requests: Sequence[Request]) -> list[Encoded]:
        """Inputs of each prompt by itself, as `models.prompts.encode_prompt` gives them: `input_ids` and
        `attention_mask` (1, length), and what the image became. Raises BadImageError."""
        texts = [self.text(request.turns, request.image is not None) for request in requests]
        pixels, opened = self._look_at_images(requests, texts)
        rows: list[Encoded] = []
        for request, text in zip(requests, texts, strict=True):
            if request.image is None:
                rows.append(dict(self._ids(text, 0)))
            elif request.image in pixels:
                values, copies = pixels[request.image]
                rows.append({**self._ids(text, copies), "pixel_values": values})
            else:
                rows.append(encode_text(self.loaded, text, opened[request.image]))
        return rows

    def _look_at_images(
        self, requests: Sequence[Request], texts: Sequence[str]
    ) -> tuple[dict[str, tuple[Tensor, int]], dict[str, Image]]:
        """Pixels (1, …) and number of tokens of the images that go the quick way, and the images that don't, opened."""
        pixels: dict[str, tuple[Tensor, int]] = {}
        opened: dict[str, Image] = {}
        by_size: dict[Size, list[str]] = {}
        for request, text in zip(requests, texts, strict=True):
            name = request.image
            if name is None or name in pixels or name in opened:
                continue
            if (cached := self._pixels.get(name)) is not None:
                pixels[name] = cached
                continue
            assert self.images is not None, "a request with an image needs data.images"
            opened[name] = image = self.images.open(name)
            if image.size not in self._copies:
                self._copies[image.size] = self._show_quick_way(text, image)
            if self._copies[image.size] is not None:
                by_size.setdefault(image.size, []).append(name)
        for size, names in by_size.items():
            copies = self._copies[size]
            assert copies is not None
            together = self._make_pixels([opened.pop(name) for name in names])
            for index, name in enumerate(names):
                pixels[name] = (together[index : index + 1], copies)
                # A copy, because a view would keep the whole batch alive.
                self._pixels.put(name, together[index : index + 1].clone(), copies)
        return pixels, opened

    def _show_quick_way(self, text: str, image: Image) -> int | None:
        """Number of tokens of an image of this size, if making text and pixels apart gives what the processor gives."""
        if self.loaded.image_token is None or self.loaded.image_token_id is None:
            return None
        slow = encode_text(self.loaded, text, image)
        pixels = slow.get("pixel_values")
        extra = set(slow) - {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "pixel_values"}
        if extra or pixels is None or pixels.dim() != 4 or len(pixels) != 1:
            return None
        copies = int((slow["input_ids"] == self.loaded.image_token_id).sum())
        same_ids = all(torch.equal(slow[name], value) for name, value in self._ids(text, copies).items())
        return copies if same_ids and torch.equal(self._make_pixels([image]), pixels) else None

    def _make_pixels(self, images: list[Image]) -> Tensor:
        processor: Any = self.loaded.processor.image_processor
        pixels: Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
        return pixels

    def _make_ids(self, text: str, copies: int) -> Encoded:
        if copies == 0:
            return encode_text(self.loaded, text, None)
        tokenizer, token = self.loaded.tokenizer, self.loaded.image_token
        assert token is not None
        bos = tokenizer.bos_token
        written = bos is not None and text.startswith(bos)
        ids = tokenizer(text.replace(token, token * copies), add_special_tokens=not written, return_tensors="pt")
        return {name: ids[name] for name in ("input_ids", "attention_mask")}

    def _text(self, turns: tuple[Turn, ...], image: bool) -> str:
        return prompt_text(self.loaded.processor, turns, image=image, field=self.loaded.field)

    def _num_text_tokens(self, text: str) -> int:
        return len(self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


class PixelCache:
    """The most recently used images' pixels, up to `limit` bytes."""

    def __init__(self, limit: int = PIXEL_BYTES) -> None:
        self.limit, self.num_bytes = limit, 0
        self._kept: OrderedDict[str, tuple[Tensor, int]] = OrderedDict()

    def get(self, name: str) -> tuple[Tensor, int] | None:
        if name in self._kept:
            self._kept.move_to_end(name)
        return self._kept.get(name)

    def put(self, name: str, pixels: Tensor, copies: int) -> None:
        self._kept[name] = (pixels, copies)
        self.num_bytes += pixels.nbytes
        while self.num_bytes > self.limit:
            _, (oldest, _) = self._kept.popitem(last=False)
            self.num_bytes -= oldest.nbytes
