"""Where the API server is and who we are there: by the pod's service account, or by a kubeconfig with all that it allows."""

import asyncio
import logging
import os
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from kubernetes.aio import config
from kubernetes.aio.client.configuration import Configuration

from comd_api.exit_codes import UserError

log = logging.getLogger(__name__)

_LOOK_SECONDS = 30.0
"""A credential plugin whose token has ended is called at most so often."""


async def load(*, context: str | None = None) -> Configuration:
    """The service account's token is read anew each minute, a credential plugin called when its token is about to end.

    Raises:
        UserError: there is no way to an API server here.
    """
    configuration = Configuration()
    if not context:
        try:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            return configuration
        except config.ConfigException:
            pass
    file = _kubeconfig()
    if not any(Path(part).exists() for part in file.split(os.pathsep)):
        raise UserError(
            f"no way to an API server: there is no service account here, and no kubeconfig {file}; set KUBECONFIG, or run in a pod"
        )
    _check_context(context, file)
    try:
        loader = await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=file, context=context, client_configuration=configuration, persist_config=False
        )
    except (config.ConfigException, OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(
            f"no way to an API server: there is no service account here, and the kubeconfig {file} can't be used ({error}); "
            "set KUBECONFIG, or run in a pod"
        ) from None
    if hasattr(loader, "exec_plugin_expiry"):
        configuration.refresh_api_key_hook = _Plugin(loader).renew  # type: ignore[assignment]
    configuration.proxy = configuration.proxy or _proxy_for(str(configuration.host))
    return configuration


def current_namespace(*, context: str | None = None) -> str | None:
    """Of the kubeconfig's context, or of our own pod; None where neither says."""
    if not context and (found := own_namespace()) is not None:
        return found
    try:
        contexts, active = config.list_kube_config_contexts(config_file=_kubeconfig())  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError, ValueError, TypeError, yaml.YAMLError):
        return None  # `load` says what is wrong with it.
    chosen = next((entry for entry in contexts if entry["name"] == context), None) if context else active
    namespace = ((chosen or {}).get("context") or {}).get("namespace")
    return str(namespace) if namespace else None


def own_namespace() -> str | None:
    """The pod's, where there is one."""
    try:
        with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return None


def _kubeconfig() -> str:
    return os.environ.get("KUBECONFIG") or str(Path.home() / ".kube/config")


def _check_context(context: str | None, file: str) -> None:
    """Raises UserError: the file has others. What else is wrong with it is said by who loads it."""
    if not context:
        return
    try:
        known, _ = config.list_kube_config_contexts(config_file=file)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError, ValueError, TypeError, yaml.YAMLError):
        return
    names = [entry["name"] for entry in known]
    if context not in names:
        raise UserError(f"--context: there is no context {context} in {file}; it has: {', '.join(names)}")


class _Plugin:
    """Calls a kubeconfig's credential plugin again; one call at a time, whoever asks."""

    def __init__(self, loader: Any) -> None:
        self._loader, self._looked, self._turn = loader, time.monotonic(), asyncio.Lock()

    async def renew(self, configuration: Configuration) -> None:
        async with self._turn:
            if time.monotonic() - self._looked < _LOOK_SECONDS:
                return
            await self._loader.load_from_exec_plugin()  # Does nothing while the token is good; logs what went wrong.
            self._looked = time.monotonic()
            token = getattr(self._loader, "token", None)
            if token:
                configuration.api_key["BearerToken"] = token


def _proxy_for(host: str) -> str | None:
    """By HTTPS_PROXY and NO_PROXY, for a server that a kubeconfig names; the cluster's own address is never behind a proxy."""
    parts = urlsplit(host)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return urllib.request.getproxies().get(parts.scheme)
