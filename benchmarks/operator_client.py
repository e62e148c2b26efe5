"""The API server, spoken to barely: the operator's TLS and connection pool, and nothing of the operator on top."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject

MERGE = "application/merge-patch+json"
NAMES_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
NO_LIMIT = aiohttp.ClientTimeout(total=None, sock_connect=10)


class Write(NamedTuple):
    verb: str
    path: str
    body: str
    content_type: str = "application/json"


class Client:
    def __init__(self, session: aiohttp.ClientSession, host: str) -> None:
        self._session, self._host = session, host

    @classmethod
    @asynccontextmanager
    async def connected(cls, kubeconfig: Path | None = None) -> AsyncIterator[Self]:
        configuration = Configuration()
        file = str(kubeconfig or os.environ["KUBECONFIG"])
        await config.load_kube_config(config_file=file, client_configuration=configuration)  # type: ignore[no-untyped-call]
        configuration.connection_pool_maxsize = 64
        configuration.client_session_kwargs = {"trust_env": False}
        session: aiohttp.ClientSession = RESTClientObject(configuration)._create_pool_manager()
        async with session:
            yield cls(session, configuration.host)

    async def write(self, write: Write) -> bytes:
        """The answer, unread. Raises RuntimeError when it is a refusal."""
        headers = {"Accept": "application/json", "Content-Type": write.content_type}
        url = f"{self._host}{write.path}"
        async with self._session.request(write.verb, url, data=write.body, headers=headers) as answer:
            data = await answer.read()
            if answer.status >= 400:
                raise RuntimeError(f"{write.verb} {write.path}: {answer.status} {data[:300].decode(errors='replace')}")
            return data

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(await self.write(Write("POST", path, json.dumps(body))))
        return made

    async def get(self, path: str, **params: str) -> dict[str, Any]:
        async with self._session.get(f"{self._host}{path}", params=params) as answer:
            found: dict[str, Any] = await answer.json()
            if answer.status >= 400:
                raise RuntimeError(f"GET {path}: {found.get('message')}")
            return found

    async def delete(self, path: str, **params: str) -> None:
        async with self._session.delete(f"{self._host}{path}", params=params, timeout=NO_LIMIT) as answer:
            await answer.read()

    async def version(self, path: str) -> str:
        """From where a watch sees all that is made later."""
        listed = await self.get(path, limit="1")
        return str(listed["metadata"]["resourceVersion"])

    async def watch(self, path: str, version: str, *, accept: str = "application/json") -> AsyncIterator[bytes]:
        """Events as lines, until cancelled. The server ends a watch now and then: it is taken up where it was."""
        while True:
            params = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "3600"}
            headers = {"Accept": accept}
            async with self._session.get(
                f"{self._host}{path}", params=params, headers=headers, timeout=NO_LIMIT, read_bufsize=2**22
            ) as answer:
                async for line in answer.content:
                    if line.startswith(b'{"type":"ERROR"'):
                        raise RuntimeError(f"watch of {path}: {line.decode(errors='replace')}")
                    yield line
                    last = line
            version = str(json.loads(last)["object"]["metadata"]["resourceVersion"])
            await asyncio.sleep(0)
