"""`comd installed`: whether an operator that was installed works. `helm test` calls it in a pod with the operator's image, rights and
variables; users never need to, so that the help does not list it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp

from comd_api import API_VERSION
from comd_api.exit_codes import ExitCode, UserError
from comd_api.kinds import RUN, SCHEDULE
from comd_operator.runtime.api import Api, ApiError, namespaced
from comd_operator.runtime.credentials import own_namespace
from comd_operator.runtime.limiter import TokenBucket
from comd_operator.runtime.metrics import Metrics
from comd_operator.shell.options import Options

AGAIN_SECONDS = 1.0
TIMEOUT = aiohttp.ClientTimeout(total=5)
FRESH_SECONDS = 60.0
"""A Lease that was renewed within that time is held, even if clocks differ a little."""


class NotYetError(Exception):
    """What is missing, as a sentence."""


def installed_command(options: Options, *, url: str, seconds: float) -> int:
    return asyncio.run(_installed(options, url=url.rstrip("/"), seconds=seconds))


async def _installed(options: Options, *, url: str, seconds: float) -> int:
    """url: of the operator's Service. seconds: how long to wait for all of it."""
    api = await Api.connect(
        limiter=TokenBucket(rate=0, burst=1),
        metrics=Metrics(),
        context=options.context or None,
        user_agent="comd-installed",
    )
    try:
        until = time.monotonic() + seconds
        fine = [
            await _wait(
                "the custom resources are served, and may be listed", lambda: _served(api, options), until=until
            ),
            await _wait("the operator is ready", lambda: _ready(url), until=until),
            await _wait("a replica holds the Lease", lambda: _led(api, options), until=until),
        ]
    finally:
        await api.close()
    return ExitCode.DONE if all(fine) else ExitCode.FAILED


async def _wait(what: str, look: Callable[[], Awaitable[None]], *, until: float) -> bool:
    """Says how it went. Whatever is over time is looked at once."""
    while True:
        try:
            await look()
        except NotYetError as error:
            if time.monotonic() < until:
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            print(f"not so: {what}: {error}")
            return False
        print(what)
        return True


async def _served(api: Api, options: Options) -> None:
    namespaces: list[str | None] = [*options.namespace_list] or [None]
    for namespace in namespaces:
        for kind in (RUN, SCHEDULE):
            await _get(api, namespaced(API_VERSION, kind.plural, namespace), limit="1")


async def _ready(url: str) -> None:
    wanted = f"{url}/readyz"
    try:
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session, session.get(wanted) as answer:
            if answer.status != 200:
                raise NotYetError(f"{wanted} answers {answer.status}: {(await answer.text())[:200].strip()}")
    except aiohttp.InvalidURL:
        raise UserError(f"--url: {url!r} is no URL; right would be http://SERVICE.NAMESPACE:PORT") from None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise NotYetError(f"{wanted} can't be reached: {error or type(error).__name__}") from None


async def _led(api: Api, options: Options) -> None:
    namespace = options.lease_namespace or own_namespace() or "default"
    path = namespaced("coordination.k8s.io/v1", "leases", namespace, options.lease_name)
    spec = (await _get(api, path)).get("spec") or {}
    if not spec.get("holderIdentity") or not spec.get("renewTime"):
        raise NotYetError(f"nobody holds {namespace}/{options.lease_name}")
    age = (datetime.now(UTC) - datetime.fromisoformat(spec["renewTime"])).total_seconds()
    if age > FRESH_SECONDS:
        raise NotYetError(f"{spec['holderIdentity']} has not renewed {namespace}/{options.lease_name} for {age:.0f} s")


async def _get(api: Api, path: str, **params: str) -> Any:
    try:
        return await api.get(path, params=params)
    except ApiError as error:
        raise NotYetError(f"{path}: {error}") from None
