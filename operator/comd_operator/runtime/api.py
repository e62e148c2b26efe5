"""The API server, spoken to in raw JSON through the official client's asynchronous transport. Its typed models are left alone:
they refuse fields that they don't know, and drop those of answers."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from comd_api.exit_codes import UserError
from comd_operator.runtime import depth
from comd_operator.runtime.credentials import load
from comd_operator.runtime.limiter import TokenBucket
from comd_operator.runtime.metrics import Metrics

log = logging.getLogger(__name__)

_BUFFER = 2**21
"""Bytes that are read ahead: a page of a list at once, and no more of a watch than can be worked off in between."""
_IDLE_SECONDS = 60.0
"""For which a connection is kept: the server keeps its end longer."""
_MOST_RETRY_AFTER = 60.0
"""Seconds; a server that names more is asked again all the same. An hour of rest for one bad answer helps nobody."""
_LONGEST_RETRY_AFTER = 10.0
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class ApiError(Exception):
    """A request that was refused, or got no answer (status 0: it may have been carried out all the same)."""

    def __init__(
        self,
        *,
        status: int,
        reason: str,
        message: str,
        retry_after: float | None = None,
    ) -> None:
        """reason: the server's word (`Conflict`); without an answer `Timeout`, `NoConnection` or `Garbled`.
        retry_after: seconds, where the server says so."""
        super().__init__(f"{status} {reason}: {message}" if status else f"{reason}: {message}")
        self.status, self.reason, self.message, self.retry_after = status, reason, message, retry_after

    @classmethod
    def of(cls, told: Mapping[str, Any], *, status: int, retry_after: float | None = None) -> "ApiError":
        """From a `Status`, as it is the body of a refusal or an event of a watch."""
        details = told.get("details")
        details = details if isinstance(details, dict) else {}
        seconds = details.get("retryAfterSeconds")
        if retry_after is None and isinstance(seconds, int) and seconds > 0:
            retry_after = float(seconds)
        if retry_after is not None:
            retry_after = min(retry_after, _MOST_RETRY_AFTER)
        return cls(
            status=status,
            reason=str(told.get("reason") or "Unknown"),
            message=str(told.get("message") or "").strip(),
            retry_after=retry_after,
        )


def namespaced(
    api_version: str,
    plural: str,
    namespace: str | None = None,
    name: str | None = None,
    *,
    subresource: str | None = None,
) -> str:
    """`("batch/v1", "jobs", "team", "x")` → `/apis/batch/v1/namespaces/team/jobs/x`."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    parts = [root, *(("namespaces", namespace) if namespace else ()), plural, name or "", subresource or ""]
    return "/".join(part for part in parts if part)


class Api:
    """One for the whole process; belongs to one event loop.

    Connections are not limited in number: watches keep theirs, and a pool that they fill would let no request through. As many are
    open as there are watches and workers.
    """

    def __init__(
        self,
        *,
        configuration: Configuration,
        limiter: TokenBucket,
        metrics: Metrics,
        timeout: float,
        user_agent: str,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """timeout: seconds for one request from its start to the end of its answer, without the wait for the limiter."""
        self._configuration, self._limiter, self._metrics = configuration, limiter, metrics
        self._timeout, self._user_agent, self._sleep = timeout, user_agent, sleep
        self._transport = _Transport(_tuned(configuration))
        self.before_write: Callable[[], None] = lambda: None
        """Called when a write is about to go out, its wait for the limiter over; raises when it must not."""

    @classmethod
    async def connect(
        cls,
        *,
        limiter: TokenBucket,
        metrics: Metrics,
        timeout: float = 10.0,
        context: str | None = None,
        user_agent: str,
    ) -> "Api":
        """By the pod's service account, else by the kubeconfig; where a context is named, by the kubeconfig.

        Raises:
            UserError: there is neither, or it can't be used.
        """
        configuration = await load(context=context)
        try:
            return cls(
                configuration=configuration, limiter=limiter, metrics=metrics, timeout=timeout, user_agent=user_agent
            )
        except OSError as error:
            raise UserError(f"a certificate for the API server {configuration.host} can't be used: {error}") from None

    async def close(self) -> None:
        await self._transport.close()

    # All of these raise ApiError. urgent: past the rate limit and never tried twice, for the Lease, which must not be lost to our
    # own haste.

    async def get(
        self, path: str, *, params: Mapping[str, str] | None = None, timeout: float | None = None, urgent: bool = False
    ) -> Any:
        """Tried once more when the server is busy and says for how long."""
        try:
            return await self._request("GET", path, params=params, timeout=timeout, urgent=urgent)
        except ApiError as error:
            if urgent or error.retry_after is None or error.retry_after > _LONGEST_RETRY_AFTER:
                raise
            await self._sleep(error.retry_after)
        return await self._request("GET", path, params=params, timeout=timeout)

    async def create(
        self, path: str, body: Mapping[str, Any], *, timeout: float | None = None, urgent: bool = False
    ) -> Any:
        return await self._request("POST", path, body=body, timeout=timeout, urgent=urgent)

    async def update(
        self, path: str, body: Mapping[str, Any], *, timeout: float | None = None, urgent: bool = False
    ) -> Any:
        return await self._request("PUT", path, body=body, timeout=timeout, urgent=urgent)

    async def patch(self, path: str, body: Any, *, content_type: str, timeout: float | None = None) -> Any:
        return await self._request("PATCH", path, body=body, timeout=timeout, content_type=content_type)

    async def delete(self, path: str, *, body: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        return await self._request("DELETE", path, body=body, timeout=timeout)

    async def watch(
        self, path: str, *, params: Mapping[str, str], inactivity_timeout: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a watch as `{"type", "object"}`, until the server ends it. To be closed (`aclosing`) by who leaves early.

        Raises:
            ApiError: refused, broken, or silent for `inactivity_timeout` seconds (bookmarks come each minute).
        """
        url = self._url(path, {**params, "watch": "true"})
        patience = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=inactivity_timeout)
        self._metrics.api_wait.observe(await self._limiter.take())
        with _as_api_errors():
            async with self._answer("GET", url, verb="watch", resource=resource_of(path), timeout=patience) as answer:
                rest = b""
                async for chunk in answer.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line.strip():
                            yield _decode(line)
                    await asyncio.sleep(0)  # A flood of events must not keep everybody else waiting.

    async def _request(
        self,
        method: Method,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        timeout: float | None = None,
        content_type: str = "application/json",
        urgent: bool = False,
    ) -> Any:
        if not urgent:
            self._metrics.api_wait.observe(await self._limiter.take())
            if method != "GET":
                self.before_write()
        verb = _VERBS.get(method) or ("get" if names_one(path) else "list")
        patience = aiohttp.ClientTimeout(total=timeout or self._timeout)
        with _as_api_errors():
            async with self._answer(
                method,
                self._url(path, params or {}),
                verb=verb,
                resource=resource_of(path),
                timeout=patience,
                body=body,
                content_type=content_type,
            ) as answer:
                data = await answer.read()
        return _decode(data)

    def _url(self, path: str, params: Mapping[str, str]) -> str:
        return f"{self._configuration.host}{path}{'?' + urlencode(params, quote_via=quote) if params else ''}"

    @asynccontextmanager
    async def _answer(
        self,
        method: Method,
        url: str,
        *,
        verb: str,
        resource: str,
        timeout: aiohttp.ClientTimeout,
        body: Any = None,
        content_type: str = "application/json",
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that is no refusal; it is counted, and closed at the end however much of it was read."""
        started, code = time.monotonic(), 0
        try:
            answer = await self._send(method, url, timeout=timeout, body=body, content_type=content_type)
            code = answer.status
        finally:
            self._metrics.api_requests.labels(verb=verb, resource=resource, code=str(code)).inc()
            self._metrics.api_duration.labels(verb=verb, resource=resource).observe(time.monotonic() - started)
        async with answer:
            if code >= 400:
                raise _refusal(answer, await answer.read())
            yield answer

    async def _send(
        self, method: Method, url: str, *, timeout: aiohttp.ClientTimeout, body: Any, content_type: str
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": self._user_agent}
        token = await self._token()
        if token:
            headers["Authorization"] = token
        sent = await self._transport.request(  # type: ignore[no-untyped-call]
            method, url, headers=headers, body=body, _request_timeout=timeout
        )
        answer: aiohttp.ClientResponse = sent.response
        return answer

    async def _token(self) -> str | None:
        """Loaders of different versions of the client call it differently. A token that can't be renewed just now may still be
        good, and if it isn't, the server says so."""
        try:
            token: str | None = await self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        except (config.ConfigException, OSError, ValueError) as error:
            log.warning("the token for the API server could not be renewed: %s", error)
            keys = self._configuration.api_key
            token = keys.get("BearerToken") or keys.get("authorization")
        return token


class _Transport(RESTClientObject):
    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(ssl=self.ssl_context, limit=0, keepalive_timeout=_IDLE_SECONDS)


def _tuned(configuration: Configuration) -> Configuration:
    configuration.retries = None
    # What Go accepts in a certificate, we do: clusters have certificates that are older than strictness.
    configuration.disable_strict_ssl_verification = True
    # A look into ~/.netrc before each request helps nobody; `load` has seen to the proxy.
    configuration.client_session_kwargs = {"trust_env": False, "read_bufsize": _BUFFER}
    return configuration


@contextmanager
def _as_api_errors() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise ApiError(status=0, reason="Timeout", message=str(error) or "no answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise ApiError(status=0, reason="NoConnection", message=str(error) or type(error).__name__) from error


def _decode(data: bytes) -> Any:
    """Raises ApiError: it isn't JSON, so it isn't the API server that answered, or not to the end."""
    try:
        try:
            return json.loads(data)
        except RecursionError:
            return json.loads(depth.cut(data))
    except ValueError as error:
        raise ApiError(status=0, reason="Garbled", message=f"no JSON: {data[:80]!r}") from error


def _refusal(answer: aiohttp.ClientResponse, data: bytes) -> ApiError:
    try:
        told = json.loads(data)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        told = {"reason": answer.reason, "message": data[:300].decode(errors="replace")}
    wait = answer.headers.get("Retry-After", "")
    return ApiError.of(told, status=answer.status, retry_after=float(wait) if wait.isdigit() else None)


def resource_of(path: str) -> str:
    """`/apis/batch/v1/namespaces/team/jobs/x` → `jobs`, `…/jobs/x/status` → `jobs/status`: a label with few values."""
    parts = _below_group(path)
    if not parts:
        return "discovery"
    return f"{parts[0]}/{parts[2]}" if len(parts) > 2 else parts[0]


def names_one(path: str) -> bool:
    """Whether a path is that of one object, and not of all of a kind."""
    return len(_below_group(path)) != 1


def _below_group(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    return parts[2:] if len(parts) >= 3 and parts[0] == "namespaces" else parts
