"""A model behind an OpenAI-compatible chat completions service: vLLM, SGLang, or any other."""

import asyncio
import base64
import email.utils
import io
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from PIL import Image
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from comd_api.exit_codes import BadDataError, ComdError, TryAgainError, UserError
from comd_api.recipe import Decoding
from comd_api.roles import Endpoint
from comd_trainer import metrics
from comd_trainer.data.images import BadImageError, Images
from comd_trainer.generation.base import OnDone, Reply, Request

logger = logging.getLogger(__name__)

REFUSED = {
    401: "refused the key; check apiKeySecretRef and what the Secret holds",
    403: "does not let this key use the model; check apiKeySecretRef and the model's name",
    404: "does not know the address or the model; check url (up to and including the version) and model",
}
MAX_UNREADABLE = 4
"""Replies to one request that are no chat completion before it counts as bad data: services do send a broken one now
and then."""


SENT_AS_THEY_ARE = frozenset({"image/jpeg", "image/png", "image/webp", "image/gif"})


class _TransientError(Exception):
    """Worth asking again: busy, broken for the moment, or not reached."""

    def __init__(self, reason: str, *, retry_after: float | None = None, busy: bool = False) -> None:
        super().__init__(reason)
        self.retry_after, self.busy = retry_after, busy

    @property
    def kind(self) -> str:
        """For the metrics."""
        return "busy" if self.busy else "unreadable" if isinstance(self, _UnreadableError) else "failed"


class _UnreadableError(_TransientError):
    """An answer with status 200 that is no chat completion."""


def read_key(endpoint: Endpoint, *, field: str) -> str | None:
    """The service's key, from the environment: the operator maps the Secret to the variable that `comd run` reads as
    well."""
    ref = endpoint.api_key_secret_ref
    if ref is None:
        return None
    variable = "_".join(
        ["COMD_SECRET", *(part.upper().replace("-", "_").replace(".", "_") for part in (ref.name, ref.key))]
    )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"{field}.apiKeySecretRef: no key for {ref.name}/{ref.key}; set the environment variable {variable}"
        )
    return key


class EndpointGenerator:
    """Keeps `concurrency` requests under way until all are answered.

    Busy services (429, 5xx) and lost connections are asked again, as late as they wish (Retry-After) and with growing,
    jittered waits otherwise. When nothing has got through for `patience_seconds` it is TryAgainError; when only one
    request does not, the failure is that request's.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        images: Images | None,
        *,
        field: str,
        key: str | None,
        concurrency: int | None = None,
        role: str = "model",
        check: Callable[[], None] = lambda: None,
        patience_seconds: float = 900.0,
        max_wait_seconds: float = 60.0,
    ) -> None:
        self.endpoint, self.images, self.field, self.role, self.check = endpoint, images, field, role, check
        self.concurrency = concurrency or endpoint.concurrency
        self.patience_seconds, self.max_wait_seconds = patience_seconds, max_wait_seconds
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.last_success = 0.0
        """On the monotonic clock."""
        for reason in ("busy", "failed", "unreadable"):
            metrics.add(metrics.ENDPOINT_ERRORS, 0, role=role, reason=reason)

    def plan(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Request]]:  # noqa: ARG002
        """Requests of the same image together, for the service's prefix cache; one to a batch, for each is answered by
        itself."""
        return [[request] for request in sorted(requests, key=lambda request: (request.image or "", request.key))]

    def generate(self, requests: Sequence[Request], decoding: Decoding, on_done: OnDone) -> None:
        """See `Generator.generate`. Replies come as they finish.

        Raises UserError when the service refuses us or a request, BadDataError when it keeps sending what is no chat
        completion, TryAgainError when it can't be reached for `patience_seconds`.
        """
        if not requests:
            return
        ordered = [request for batch in self.plan(requests, decoding) for request in batch]
        asyncio.run(self._answer_all(ordered, decoding, on_done))

    async def _answer_all(self, requests: Sequence[Request], decoding: Decoding, on_done: OnDone) -> None:
        waiting = iter(requests)
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        timeout = httpx.Timeout(self.endpoint.timeout_seconds, connect=min(30.0, self.endpoint.timeout_seconds))

        async with httpx.AsyncClient(headers=self.headers, limits=limits, timeout=timeout) as client:

            async def answer_some() -> None:
                # One iterator for all: whoever is free takes the next request.
                for request in waiting:
                    on_done([await self._answer(client, request, decoding)])

            async def watch() -> None:
                while True:
                    self.check()
                    await asyncio.sleep(0.5)

            watcher = asyncio.create_task(watch())
            workers = [asyncio.create_task(answer_some()) for _ in range(min(self.concurrency, len(requests)))]
            working = {watcher, *workers}
            try:
                while working != {watcher}:
                    done, working = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
            finally:
                for task in (watcher, *workers):
                    task.cancel()
                await asyncio.gather(watcher, *workers, return_exceptions=True)

    async def _answer(self, client: httpx.AsyncClient, request: Request, decoding: Decoding) -> Reply:
        body = await asyncio.to_thread(self._body, request, decoding)
        started, unreadable = time.monotonic(), 0
        worth_it = retry_if_exception_type(_TransientError)
        retrying = AsyncRetrying(retry=worth_it, wait=self._seconds_to_wait, reraise=True)
        async for attempt in retrying:
            with attempt:
                try:
                    reply = await self._ask(client, request, body)
                except _TransientError as error:
                    metrics.add(metrics.ENDPOINT_ERRORS, role=self.role, reason=error.kind)
                    unreadable += isinstance(error, _UnreadableError)
                    self._give_up_if_due(request, error, started=started, unreadable=unreadable)
                    raise
        self.last_success = time.monotonic()
        return reply

    async def _ask(self, client: httpx.AsyncClient, request: Request, body: dict[str, Any]) -> Reply:
        """One HTTP exchange. Raises _TransientError for what another try may mend."""
        try:
            # httpx bounds each read; a service that drips bytes is bounded as a whole here.
            async with asyncio.timeout(self.endpoint.timeout_seconds):
                response = await client.post(f"{self.endpoint.url.rstrip('/')}/chat/completions", json=body)
        except TimeoutError as error:
            raise _TransientError(f"no answer within timeoutSeconds {self.endpoint.timeout_seconds}") from error
        except httpx.TransportError as error:
            raise _TransientError(f"{type(error).__name__}: {error}") from error
        status = response.status_code
        if status in (408, 409, 425, 429) or status >= 500:
            retry_after = _retry_after(response.headers.get("Retry-After"))
            raise _TransientError(f"status {status}", retry_after=retry_after, busy=status in (429, 503))
        if status in REFUSED:
            raise UserError(
                f"{self.field}: {self.endpoint.url} {REFUSED[status]} (status {status}: {_excerpt(response)})"
            )
        if status != 200:
            raise UserError(
                f"{self.field}: {self.endpoint.url} refused the {self.role}'s request {request.title} "
                f"(status {status}: {_excerpt(response)}); change the request or the service's limits"
            )
        return _reply_of(request.key, response)

    def _give_up_if_due(self, request: Request, error: _TransientError, *, started: float, unreadable: int) -> None:
        if unreadable >= MAX_UNREADABLE:
            raise BadDataError(
                f"{self.field}: {self.endpoint.url} answered request {request.title} with what is no chat completion, "
                f"{unreadable} times ({error}); check that url names an OpenAI-compatible service"
            ) from error
        # A busy service that answers somebody is doing what it can; whoever asks it waits for a turn.
        since = max(started, self.last_success) if error.busy else started
        if time.monotonic() - since < self.patience_seconds:
            logger.info("%s: asking again: %s", self.field, error)
            return
        if self.last_success > started:
            raise ComdError(
                f"{self.field}: {self.endpoint.url} answers others but not request {request.title} ({error})"
            ) from error
        raise TryAgainError(
            f"{self.field}: {self.endpoint.url} could not be asked for {self.patience_seconds:.0f} s ({error}); "
            "it is tried again later"
        ) from error

    def _seconds_to_wait(self, state: RetryCallState) -> float:
        """Seconds before the next try: what the service asks for, else 0.5 s doubled each time, with jitter."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _TransientError) and error.retry_after is not None:
            return min(error.retry_after, self.patience_seconds)
        return float(wait_random_exponential(multiplier=0.5, max=self.max_wait_seconds)(state))

    def _body(self, request: Request, decoding: Decoding) -> dict[str, Any]:
        """The JSON of one request. The image stands in front of the first user's turn, as a data URL of the file's own
        bytes."""
        messages: list[dict[str, Any]] = [{"role": turn.role, "content": turn.text} for turn in request.turns]
        if request.image is not None:
            assert self.images is not None
            first = next(message for message in messages if message["role"] == "user")
            url = data_url(self.images, request.image)
            first["content"] = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": first["content"]},
            ]
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": messages,
            "temperature": decoding.temperature,
            "max_tokens": decoding.max_new_tokens,
        }
        if decoding.temperature:
            body |= {"top_p": decoding.top_p, "seed": request.seed}
        return body


def data_url(images: Images, name: str) -> str:
    """The image file as it is, if services know its format, else as PNG. Raises BadDataError."""
    try:
        path = images.path(name)
        with Image.open(path) as image:
            media_type = Image.MIME.get(image.format or "")
        if media_type in SENT_AS_THEY_ARE:
            data = path.read_bytes()
        else:
            media_type, buffer = "image/png", io.BytesIO()
            images.open(name).save(buffer, format="PNG")
            data = buffer.getvalue()
    except BadImageError as error:
        raise BadDataError(f"data.images: {error}; leave its rows out") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise BadDataError(f"data.images: image {name!r} does not decode: {error}; leave its rows out") from error
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _reply_of(key: str, response: httpx.Response) -> Reply:
    """The first choice. A missing text (a refusal, say) is an empty answer."""
    try:
        choice = response.json()["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        if not isinstance(text, str | None):
            raise TypeError(f"content is {type(text).__name__}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _UnreadableError(f"{type(error).__name__}: {error}; {_excerpt(response)}") from error
    _count_tokens(response)
    # Half a surrogate pair, as services send that cut their text at a length in bytes, is no character.
    text = (text or "").encode("utf-8", "replace").decode()
    return Reply(key=key, text=text.strip(), finish="length" if finish == "length" else "stop")


def _count_tokens(response: httpx.Response) -> None:
    """Services tell in `usage` how many tokens they wrote; those that don't are not counted."""
    try:
        written = response.json()["usage"]["completion_tokens"]
    except (LookupError, TypeError):
        return
    if isinstance(written, int) and written > 0:
        metrics.add(metrics.GENERATED_TOKENS, written)


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number, or a date (RFC 9110). None when there is none that can be read."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _excerpt(response: httpx.Response) -> str:
    return " ".join(response.text.split())[:200]
