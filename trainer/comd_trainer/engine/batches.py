"""Rows to training batches: prompt and answer ids made apart and joined, the answer alone supervised."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import Lock

import torch
from PIL import Image

from comd_api.exit_codes import BadDataError
from comd_trainer.data.images import BadImageError
from comd_trainer.data.rows import Turn
from comd_trainer.engine.layout import packs
from comd_trainer.models.load import LoadedModel
from comd_trainer.models.prompts import IGNORED, Encoded, answer_ids, encode_prompt, encode_text, end_mark, stack

MEMO_BYTES = 256 * 2**20
"""How much of what was encoded is kept for later epochs, on each rank. Small pools fit whole; of large ones the rest is encoded anew."""

LETTERS_PER_TOKEN = 4
"""Of English, about. Lengths are estimated with it where only their order matters."""


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
class Made:
    """A row as model inputs, or why there are none."""

    id: str
    encoded: Encoded | None
    problem: str = ""
    shows_image: bool = False

    @property
    def num_tokens(self) -> int:
        assert self.encoded is not None, "a row that can be used"
        return int(self.encoded["input_ids"].shape[1])


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    inputs: Encoded
    """With `labels`; on the CPU. Rows padded on the right with an `attention_mask`, or packed with `position_ids` (layout.py)."""
    rows: tuple[str, ...]
    """Ids of the rows that are in it."""
    dropped: dict[str, str]
    """Id and reason of rows that are not."""
    num_images: int
    """That rows which are in it show."""


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Turns rows into model inputs. Several threads may use it at once."""

    loaded: LoadedModel
    open_image: Callable[[str], Image.Image]
    max_length: int
    _memo: dict[str, Encoded] = field(default_factory=dict)
    _memo_bytes: list[int] = field(default_factory=lambda: [0])
    _memo_lock: Lock = field(default_factory=Lock)

    def __call__(self, examples: Sequence[Example]) -> MicroBatch:
        return self.padded([self.make(example) for example in examples])

    def padded(self, rows: Sequence[Made]) -> MicroBatch:
        """One micro-batch. Rows that can't be used are left out. Where no image is left, a masked row with a blank one joins: every rank
        must run the same modules (ZeRO-3 gathers parameters as they are used, ZeRO-2 reduces gradients as they come)."""
        return self._batch(rows, partial(stack, side="right"))

    def packed(self, rows: Sequence[Made], *, limit: int) -> list[MicroBatch]:
        """As few micro-batches of one sequence as hold all rows, each of at most `limit` tokens, but for the blank row that may join."""
        good = [row for row in rows if row.encoded is not None]
        found = packs([row.num_tokens for row in good], limit=limit) or [[]]
        groups = [[good[place] for place in places] for places in found]
        groups[0] += [row for row in rows if row.encoded is None]
        return [self._batch(group, pack) for group in groups]

    def make(self, example: Example) -> Made:
        """The row as model inputs, or why it can't be used; from memory where an earlier epoch made it."""
        found = self._memo.get(example.id)
        if found is None:
            try:
                found = self.encode(example)
            except (RowError, BadImageError) as error:
                return Made(id=example.id, encoded=None, problem=str(error))
            self._remember(example.id, found)
        return Made(id=example.id, encoded=found, shows_image=example.image is not None)

    def estimate(self, example: Example) -> int:
        """About how many tokens a row has, from its text alone: what all ranks can agree on before anyone has made the row."""
        letters = sum(len(turn.text) for turn in example.turns) + len(example.answer)
        return min(self.max_length, 1 + letters // LETTERS_PER_TOKEN + (self._image_tokens if example.image else 0))

    def blank_batch(self) -> MicroBatch:
        """Computed so that a rank which has less to do keeps in step with the others."""
        return self.padded([])

    def _batch(self, rows: Sequence[Made], put_together: Callable[..., Encoded]) -> MicroBatch:
        good = [row for row in rows if row.encoded is not None]
        encoded = [row.encoded for row in good if row.encoded is not None]
        sees_images = self.loaded.kind == "image-text-to-text"
        if not encoded or (sees_images and not any("pixel_values" in row for row in encoded)):
            encoded.append(self.blank)
        return MicroBatch(
            inputs=put_together(encoded, pad_token_id=self.loaded.pad_token_id),
            rows=tuple(row.id for row in good),
            dropped={row.id: row.problem for row in rows if row.encoded is None},
            num_images=sum(row.shows_image for row in good),
        )

    def _remember(self, name: str, row: Encoded) -> None:
        size = sum(value.nbytes for value in row.values())
        with self._memo_lock:
            if name not in self._memo and self._memo_bytes[0] + size <= MEMO_BYTES:
                self._memo[name] = row
                self._memo_bytes[0] += size

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

    @cached_property
    def blank(self) -> Encoded:
        """A row that is computed and counts for nothing."""
        question = (Turn(role="user", text="."),)
        size = (32, 32)
        image = Image.new("RGB", size) if self.loaded.kind == "image-text-to-text" else None
        row = join(encode_prompt(self.loaded, question, image), [end_mark(self.loaded)])
        row["labels"] = torch.full_like(row["labels"], IGNORED)
        return row

    @cached_property
    def _image_tokens(self) -> int:
        """Of a small image: exact for models that bring all images to one size."""
        token = self.loaded.image_token_id
        return self.blank["input_ids"].flatten().tolist().count(token)

    def _prompt(self, example: Example, image: Image.Image | None) -> Encoded:
        if example.turns:
            return encode_prompt(self.loaded, example.turns, image)
        token = self.loaded.image_token
        if image is None or token is None:
            raise RowError("it has no question, and plain rows start with an image that the processor has a token for")
        return encode_text(self.loaded, token, image)


def pack(rows: Sequence[Encoded], *, pad_token_id: int) -> Encoded:
    """Rows (1, L_i) joined end to end as one (1, sum of L_i). Positions restart at each row, and there is no `attention_mask`: so
    transformers sees that rows must not see each other (`masking_utils.find_packed_sequence_indices`). No row predicts the next
    one's first token, which is never supervised."""
    padded = stack(rows, side="right", pad_token_id=pad_token_id)
    present = padded.pop("attention_mask").bool()
    packed = {name: value[present][None] if value.shape == present.shape else value for name, value in padded.items()}
    packed["position_ids"] = (present.long().cumsum(dim=1) - 1)[present][None]
    return packed


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
