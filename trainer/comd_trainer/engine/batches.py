"""Rows to training batches: prompt and answer ids made apart and joined, the answer alone supervised."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from comd_api.exit_codes import BadDataError
from comd_trainer.data.images import BadImageError
from comd_trainer.data.rows import Turn
from comd_trainer.models.load import LoadedModel
from comd_trainer.models.prompts import IGNORED, Encoded, answer_ids, encode_prompt, encode_text, end_mark, stack

MEMO_BYTES = 256 * 2**20
"""How much of what was encoded is kept for later epochs, on each rank. Small pools fit whole; of large ones the rest is encoded anew."""


class RowError(ValueError):
    """A row that can't be trained on; the message says why. It is dropped, named and counted."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row to learn from."""

    id: str
    image: str | None
    turns: tuple[Turn, ...]
    """History and question; only `answer` is supervised. Empty: the image and nothing else ("plain" pre-training)."""
    answer: str
    complete: bool = True
    """False for an answer that was cut at `maxNewTokens`: learning an end mark there would teach to stop in mid-sentence."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    inputs: Encoded
    """Padded on the right, with `labels`; on the CPU."""
    rows: tuple[str, ...]
    """Ids of the rows that are in it."""
    dropped: dict[str, str]
    """Id and reason of rows that are not."""
    num_images: int
    """That rows which are in it show."""


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Turns the rows of a micro-batch into model inputs."""

    loaded: LoadedModel
    open_image: Callable[[str], Image.Image]
    max_length: int
    _memo: dict[str, Encoded] = field(default_factory=dict)
    _memo_bytes: list[int] = field(default_factory=lambda: [0])

    def __call__(self, examples: Sequence[Example]) -> MicroBatch:
        """Rows that can't be used are left out. Where no image is left, a masked row with a blank one joins: every rank must run the
        same modules (ZeRO-3 gathers parameters as they are used, ZeRO-2 reduces gradients as they come)."""
        rows: list[Encoded] = []
        used, dropped, num_images = [], {}, 0
        for example in examples:
            try:
                rows.append(self._encode_once(example))
                used.append(example.id)
                num_images += example.image is not None
            except (RowError, BadImageError) as error:
                dropped[example.id] = str(error)
        sees_images = self.loaded.kind == "image-text-to-text"
        if not rows or (sees_images and not any("pixel_values" in row for row in rows)):
            rows.append(self.blank())
        inputs = stack(rows, side="right", pad_token_id=self.loaded.pad_token_id)
        return MicroBatch(inputs=inputs, rows=tuple(used), dropped=dropped, num_images=num_images)

    def _encode_once(self, example: Example) -> Encoded:
        """`encode`, or what it gave in an earlier epoch."""
        found = self._memo.get(example.id)
        if found is not None:
            return found
        row = self.encode(example)
        size = sum(value.nbytes for value in row.values())
        if self._memo_bytes[0] + size <= MEMO_BYTES:
            self._memo[example.id] = row
            self._memo_bytes[0] += size
        return row

    def encode(self, example: Example) -> Encoded:
        """Inputs and `labels` of one row, (1, length). Raises RowError and BadImageError."""
        image = None if example.image is None else self.open_image(example.image)
        prompt = self._prompt(example, image)
        answer = check_answer(self.loaded, example.answer)
        if example.complete:
            answer = [*answer, end_mark(self.loaded)]
        num_prompt = prompt["input_ids"].shape[1]
        room = self.max_length - num_prompt
        if room < 1:
            raise RowError(f"its prompt alone has {num_prompt} tokens, and training.maxLength is {self.max_length}")
        return join(prompt, answer[:room])

    def blank(self) -> Encoded:
        """A row that is computed and counts for nothing."""
        question = (Turn(role="user", text="."),)
        size = (32, 32)
        image = Image.new("RGB", size) if self.loaded.kind == "image-text-to-text" else None
        row = join(encode_prompt(self.loaded, question, image), [end_mark(self.loaded)])
        row["labels"] = torch.full_like(row["labels"], IGNORED)
        return row

    def _prompt(self, example: Example, image: Image.Image | None) -> Encoded:
        if example.turns:
            return encode_prompt(self.loaded, example.turns, image)
        token = self.loaded.image_token
        if image is None or token is None:
            raise RowError("it has no question, and plain rows start with an image that the processor has a token for")
        return encode_text(self.loaded, token, image)


def join(prompt: Encoded, answer: Sequence[int]) -> Encoded:
    """Prompt inputs and answer ids as one row with labels: -100 on the prompt (image tokens included), the ids on the answer."""
    assert answer, "a row supervises at least one token"
    num_prompt = prompt["input_ids"].shape[1]
    ids = torch.tensor([list(answer)], dtype=prompt["input_ids"].dtype)
    row = dict(prompt)
    for name, value in prompt.items():
        if value.shape == prompt["input_ids"].shape:
            more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}.get(name, torch.zeros_like(ids))
            row[name] = torch.cat([value, more.to(value.dtype)], dim=1)
    row["labels"] = torch.cat([torch.full((1, num_prompt), IGNORED, dtype=ids.dtype), ids], dim=1)
    return row


def check_answer(loaded: LoadedModel, text: str) -> list[int]:
    """Ids of an answer, after making sure that learning them is learning the answer. Raises RowError."""
    ids = answer_ids(loaded, text)
    if not ids:
        raise RowError("its answer is empty")
    special = {
        loaded.image_token_id: "the image token",
        end_mark(loaded): "the end mark",
        loaded.tokenizer.bos_token_id: "the start mark",
    }
    for token, what in special.items():
        if token is not None and token in ids:
            raise RowError(f"its answer contains {what} as text")
    decoded = str(loaded.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if _normal(decoded) != _normal(text):
        raise RowError(f"the tokenizer turns its answer into something else, {decoded[:40]!r}")
    return ids


def _normal(text: str) -> str:
    """What a tokenizer's normaliser may change: case, compatibility forms and white space."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def check_share(
    *, num_dropped: int, num_seen: int, num_rows: int, max_fraction: float, reasons: dict[str, str]
) -> None:
    """Raises BadDataError when more rows were dropped than `data.maxBadRowFraction` allows of all rows, or of those seen."""
    if num_dropped > max_fraction * max(num_seen, num_rows):
        named = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:4])
        raise BadDataError(
            f"{num_dropped} of {max(num_seen, num_rows)} training rows can't be used, more than data.maxBadRowFraction ({max_fraction:g}) "
            f"allows: {named}"
        )
