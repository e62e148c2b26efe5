"""Requests to a model, answered through the cache: what any role asks, on any number of ranks, is asked once.

The key of a request is the digest of everything that its reply depends on: the image's bytes, the turns, the model,
the decoding, the seed where one is drawn from, and the version of the prompt format.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from comd_api.exit_codes import BadDataError
from comd_api.recipe import Decoding
from comd_api.roles import Model
from comd_trainer import metrics
from comd_trainer.context import PhaseContext
from comd_trainer.data.images import BadImageError, Images
from comd_trainer.generation.base import PROMPT_FORMAT, Generator, Reply, Request
from comd_trainer.generation.group import from_first
from comd_trainer.generation.open import max_ranks, open_images, open_model
from comd_trainer.generation.sharing import OnResults, complete
from comd_trainer.store.calls import CallCache

OnReply = Callable[[str], None]


def cached_generate(
    ctx: PhaseContext,
    *,
    model: Model | Path,
    role: str,
    fingerprint: str,
    requests: Sequence[Request],
    decoding: Decoding,
    field: str,
    on_reply: OnReply = lambda _: None,
) -> dict[str, Reply]:
    """A reply for each request, by its key, on every rank. All ranks call it with the same requests.

    `role` and `field` ("spec.teacher") are for messages. Equal requests (but for their keys) are asked once. Ask again
    for another reply with another `seed` and a temperature above 0. `on_reply` is called with each text that was not in
    the cache, as soon as it is there, on the rank that has it. Raises BadDataError for an image that can't be read.
    """
    return generate_counted(
        ctx,
        model=model,
        role=role,
        fingerprint=fingerprint,
        requests=requests,
        decoding=decoding,
        field=field,
        on_reply=on_reply,
    )[0]


def generate_counted(
    ctx: PhaseContext,
    *,
    model: Model | Path,
    role: str,
    fingerprint: str,
    requests: Sequence[Request],
    decoding: Decoding,
    field: str,
    on_reply: OnReply = lambda _: None,
) -> tuple[dict[str, Reply], int]:
    """As `cached_generate`, and how many replies the stage had to make."""
    images = open_images(ctx) if any(request.image is not None for request in requests) else None
    scope = scope_of(fingerprint, decoding, precision=None if _is_endpoint(model) else ctx.spec.training.precision)
    keys = from_first(ctx, lambda: [content_key(scope, request, decoding, images) for request in requests])
    by_content = {key: replace(request, key=key) for key, request in zip(keys, requests, strict=True)}
    results, made = complete(
        ctx,
        cache=CallCache(ctx.store, f"cache/answers/{scope[:32]}"),
        keys=list(by_content),
        label=role,
        role=role,
        open_worker=lambda: _Asker(
            open_model(ctx, model, role=role, field=field, images=images), by_content, decoding, on_reply
        ),
        max_ranks=max_ranks(model),
    )
    replies = {
        request.key: Reply(key=request.key, text=results[key]["text"], finish=results[key]["finish"])
        for key, request in zip(keys, requests, strict=True)
    }
    return replies, made


def scope_of(fingerprint: str, decoding: Decoding, *, precision: str | None) -> str:
    """Digest of what all requests of one call share; the batch size is left out, because answers don't depend on it.

    `precision` is that of a model that is loaded here; an endpoint's is not known (None).
    """
    return digest_of(
        {
            "model": fingerprint,
            "temperature": decoding.temperature,
            "topP": decoding.top_p if decoding.temperature else None,
            "maxNewTokens": decoding.max_new_tokens,
            "precision": precision,
            "promptFormat": PROMPT_FORMAT,
        }
    )


def content_key(scope: str, request: Request, decoding: Decoding, images: Images | None) -> str:
    return digest_of(
        {
            "scope": scope,
            "image": image_digest(request.image, images),
            "turns": [[turn.role, turn.text] for turn in request.turns],
            "seed": request.seed if decoding.temperature else None,
        }
    )


def image_digest(name: str | None, images: Images | None) -> str | None:
    """Digest of the image's bytes. Raises BadDataError for one that can't be read."""
    if name is None:
        return None
    assert images is not None, "a request with an image needs data.images"
    try:
        return images.digest(name)
    except (BadImageError, OSError) as error:
        raise BadDataError(f"data.images: {error}; leave its rows out") from error


class _Asker:
    """A generator as a worker: keys in, results that JSON can hold out."""

    def __init__(
        self, generator: Generator, requests: Mapping[str, Request], decoding: Decoding, on_reply: OnReply
    ) -> None:
        self.generator, self.requests, self.decoding, self.on_reply = generator, requests, decoding, on_reply

    def plan(self, keys: Sequence[str]) -> list[list[str]]:
        batches = self.generator.plan([self.requests[key] for key in keys], self.decoding)
        return [[request.key for request in batch] for batch in batches]

    def run(self, keys: Sequence[str], on_results: OnResults) -> None:
        def on_done(replies: list[Reply]) -> None:
            for reply in replies:
                self.on_reply(reply.text)
            metrics.add(metrics.IMAGES, sum(self.requests[reply.key].image is not None for reply in replies))
            on_results([(reply.key, {"text": reply.text, "finish": reply.finish}) for reply in replies])

        self.generator.generate([self.requests[key] for key in keys], self.decoding, on_done)


def _is_endpoint(model: Model | Path) -> bool:
    return isinstance(model, Model) and model.endpoint is not None


def digest_of(parts: dict[str, Any]) -> str:
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
