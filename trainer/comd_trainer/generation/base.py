"""What is asked of a model and what it replies; the one small interface that every backend has. Imports no torch."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from comd_api.recipe import Decoding
from comd_api.roles import Model
from comd_trainer.data.rows import Turn

PROMPT_FORMAT = 1
"""Part of every cache key: raise it when the same turns would reach a model as other tokens (another place for the
image, say)."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt. `turns` ends with a user's turn; the image, if any, stands in front of the first user's turn."""

    key: str
    """What the caller knows the reply by; unique within one call."""
    turns: tuple[Turn, ...]
    image: str | None
    """Path below `data.images`."""
    seed: int
    """What sampling draws from. Not looked at when the temperature is 0."""

    @property
    def title(self) -> str:
        """What a user would know it by: keys are digests."""
        text = " ".join(self.turns[-1].text.split())
        shown = text if len(text) <= 60 else text[:57] + "..."
        return f"{shown!r}" + (f" (image {self.image})" if self.image is not None else "")


@dataclass(frozen=True, kw_only=True)
class Reply:
    key: str
    text: str
    """Without special tokens and surrounding white space. May be empty."""
    finish: Literal["stop", "length"]
    """`length`: cut at `maxNewTokens`."""


OnDone = Callable[[list[Reply]], None]


class Generator(Protocol):
    """A model that answers. A reply depends on its own request, the decoding and the model, never on its neighbours in
    a batch."""

    def plan(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Request]]:
        """The batches in which `generate` would answer these requests: a pure function of the list's content.

        Planning any number of whole batches of a plan again gives the same batches, so ranks can share a plan and a
        retry can go on with what is missing of it.
        """
        ...

    def generate(self, requests: Sequence[Request], decoding: Decoding, on_done: OnDone) -> None:
        """Answers every request once. `on_done` is called with each finished batch, in the plan's order where batches
        finish in order (a local model) and as they finish otherwise (an endpoint); what it raises ends the call."""
        ...


def fingerprint_of(model: Model, fingerprints: Mapping[str, str]) -> str:
    """Identity of a model: the checkpoint's content, or the endpoint's address and model name (all that is known of
    it)."""
    if model.checkpoint is not None:
        return fingerprints[model.checkpoint.source]
    assert model.endpoint is not None, "the contract's rule EXACTLY_ONE_MODEL"
    return "sha256:" + hashlib.sha256(f"{model.endpoint.url}\n{model.endpoint.model}".encode()).hexdigest()
