"""The API server, spoken to in raw JSON through the official client's asynchronous transport. Its typed models are left alone:
they refuse fields that they don't know, and drop those of answers."""

import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from comd_api.exit_codes import UserError
from comd_operator.runtime.limiter import TokenBucket
from comd_operator.runtime.metrics import Metrics

_WATCH_BUFFER = 2**22
"""Bytes of one watch event: etcd's objects end at 1.5 MiB."""


class ApiError(Exception):
    """A request that was refused, or got no answer (status 0: it may have been carried out all the same)."""

    def __init__(
        self,
        *,
        status: int,
        reason: str,
        message: str,
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else f"{reason}: {message}")
        self.status, self.reason, self.message, self.retry_after = status, reason, message, retry_after
        self.details = dict(details or {})


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
    def __init__(
        self, *, configuration: Configuration, limiter: TokenBucket, metrics: Metrics, timeout: float, user_agent: str
    ) -> None:
        configuration.connection_pool_maxsize = 64
        configuration.proxy = configuration.proxy or proxy_for(configuration.host)
        configuration.client_session_kwargs = {"trust_env": False}
        self._configuration, self._limiter, self._metrics = configuration, limiter, metrics
        self._timeout, self._user_agent = timeout, user_agent
        self._rest = RESTClientObject(configuration)

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
        """By the pod's service account, else by the kubeconfig. Raises UserError when there is neither."""
        configuration = Configuration()
        try:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except config.ConfigException:
            try:
                await config.load_kube_config(  # type: ignore[no-untyped-call]
                    config_file=os.environ.get("KUBECONFIG") or None,
                    client_configuration=configuration,
                    context=context,
                )
            except (config.ConfigException, OSError, ssl.SSLError) as error:
                raise UserError(
                    f"no way to an API server: there is no service account here, and the kubeconfig can't be used ({error}); "
                    "set KUBECONFIG, or run in a pod"
                ) from None
        return cls(
            configuration=configuration, limiter=limiter, metrics=metrics, timeout=timeout, user_agent=user_agent
        )

    async def close(self) -> None:
        await self._rest.close()

    async def get(
        self, path: str, *, params: Mapping[str, str] | None = None, timeout: float | None = None, urgent: bool = False
    ) -> Any:
        return await self._request("GET", path, params=params, timeout=timeout, urgent=urgent)

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

    async def _request(
        self,
        verb: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        timeout: float | None = None,
        content_type: str = "application/json",
        urgent: bool = False,
    ) -> Any:
        """urgent: past the rate limit, for the Lease, which must not be lost to our own haste."""
        if not urgent:
            self._metrics.api_wait.observe(await self._limiter.take())
        resource = resource_of(path)
        started = time.monotonic()
        code = "none"
        try:
            answer = await self._send(
                verb, path, params=params, body=body, timeout=timeout or self._timeout, kind=content_type
            )
            async with answer:
                code = str(answer.status)
                data = await answer.read()
                if answer.status >= 400:
                    raise _refusal(answer.status, answer.reason or "", data, answer.headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(status=0, reason=type(error).__name__, message=str(error) or "no answer") from error
        finally:
            self._metrics.api_requests.labels(verb=verb, resource=resource, code=code).inc()
            self._metrics.api_duration.labels(verb=verb).observe(time.monotonic() - started)
        return json.loads(data) if data[:1] in (b"{", b"[") else data.decode(errors="replace")

    async def watch(
        self, path: str, *, params: Mapping[str, str], inactivity_timeout: float
    ) -> AsyncIterator[dict[str, Any]]:
        """The events of a watch as `{"type", "object"}`, until the server ends it.

        Raises:
            ApiError: refused, broken, or silent for `inactivity_timeout` seconds (bookmarks come each minute).
        """
        self._metrics.api_wait.observe(await self._limiter.take())
        code = "none"
        try:
            answer = await self._send(
                "GET",
                path,
                params={**params, "watch": "true"},
                timeout=aiohttp.ClientTimeout(total=None, sock_read=inactivity_timeout, sock_connect=self._timeout),
            )
            async with answer:
                code = str(answer.status)
                if answer.status >= 400:
                    raise _refusal(answer.status, answer.reason or "", await answer.read(), answer.headers)
                async for line in answer.content:
                    if line.strip():
                        yield json.loads(line)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiError(status=0, reason=type(error).__name__, message=str(error) or "no sign of life") from error
        finally:
            self._metrics.api_requests.labels(verb="WATCH", resource=resource_of(path), code=code).inc()

    async def _send(
        self,
        verb: str,
        path: str,
        *,
        timeout: float | aiohttp.ClientTimeout,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        kind: str = "application/json",
    ) -> aiohttp.ClientResponse:
        """By the transport's own session: its `request` joins answers in memory, and a watch has no end."""
        if self._rest.pool_manager is None:
            self._rest.pool_manager = self._rest._create_pool_manager()
        configuration = self._configuration
        headers = {"Accept": "application/json", "Content-Type": kind, "User-Agent": self._user_agent}
        for key in ("BearerToken", "authorization"):  # as loaders of different versions call it; renewed when it is old
            token = await configuration.get_api_key_with_prefix(key)
            if token:
                headers["Authorization"] = token
                break
        query = f"?{urlencode(params)}" if params else ""
        if not isinstance(timeout, aiohttp.ClientTimeout):
            timeout = aiohttp.ClientTimeout(total=timeout)
        answer: aiohttp.ClientResponse = await self._rest.pool_manager.request(
            verb,
            f"{configuration.host}{path}{query}",
            headers=headers,
            data=None if body is None else json.dumps(body),
            timeout=timeout,
            read_bufsize=_WATCH_BUFFER,
            proxy=configuration.proxy or None,
        )
        return answer


def proxy_for(url: str) -> str | None:
    """The environment's, found once. The transport would look for it at each request, in a thread, and for a password in ~/.netrc,
    with which it refuses to send a token."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def resource_of(path: str) -> str:
    """`/apis/batch/v1/namespaces/team/jobs/x` → `jobs`: a label with few values."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if len(parts) >= 3 and parts[0] == "namespaces":
        parts = parts[2:]
    if not parts:
        return "discovery"
    return f"{parts[0]}/{parts[2]}" if len(parts) > 2 else parts[0]


def _refusal(status: int, phrase: str, data: bytes, headers: Mapping[str, str]) -> ApiError:
    try:
        told = json.loads(data)
        assert isinstance(told, dict)
    except (ValueError, AssertionError):
        told = {}
    wait = headers.get("Retry-After", "")
    return ApiError(
        status=status,
        reason=told.get("reason") or phrase,
        message=told.get("message") or data[:300].decode(errors="replace"),
        retry_after=float(wait) if wait.replace(".", "", 1).isdigit() else None,
        details=told.get("details"),
    )
