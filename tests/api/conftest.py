"""Tests on a real API server without nodes.

An asynchronous test has a `world`, a namespace of its own, and perhaps parameters; nothing else. Those of one file are played
at the same time when the first of them is reached, for most of their time is waiting, and each reports for itself.
"""

import asyncio
import inspect
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from comd_api.kinds import RUN, SCHEDULE, Kind
from tests.api.world import opened
from tests.cluster.cluster import Cluster

CRDS = Path(__file__).parents[2] / "crds"
AT_ONCE = 20
LONGEST = 150.0
"""Seconds of one test."""
PLAYED = pytest.StashKey[dict[str, BaseException | None]]()
"""Of the tests that were played: how they ended."""


@pytest.fixture(scope="session")
def installed(control_plane: Cluster) -> Cluster:
    """The control plane, with our custom resources."""
    control_plane.kubectl("apply", "-f", str(CRDS))
    for kind in (RUN, SCHEDULE):
        _until_served(control_plane, kind)
    return control_plane


def _until_served(cluster: Cluster, kind: Kind) -> None:
    for _ in range(150):
        told = cluster.kubectl("get", "--raw", f"/apis/comd.dev/v1alpha1/{kind.plural}", check=False)
        if told.startswith("{"):
            return
        time.sleep(0.2)
    raise AssertionError(f"{kind.plural} can't be listed: {told}")


class Place(NamedTuple):
    cluster: Cluster
    folders: pytest.TempPathFactory


@pytest.fixture
def world(installed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where the World is made that an asynchronous test gets."""
    return Place(installed, tmp_path_factory)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.function):
        return None
    ended = pyfuncitem.session.stash.setdefault(PLAYED, {})
    if pyfuncitem.nodeid not in ended:
        together = [item for item in pyfuncitem.session.items if _plays_with(pyfuncitem, item)]
        place = cast(Place, pyfuncitem.funcargs["world"])
        try:
            ended |= _play(together, place.cluster, place.folders.mktemp("worlds") / "kubeconfig")
        except BaseException as error:  # such as the time limit: none of them is played a second time
            ended |= dict.fromkeys([item.nodeid for item in together], error)
            raise
    how = ended[pyfuncitem.nodeid]
    if how is not None:
        raise how
    return True


def _plays_with(one: pytest.Function, other: pytest.Item) -> bool:
    return isinstance(other, pytest.Function) and other.path == one.path and inspect.iscoroutinefunction(other.function)


def _play(items: list[Any], cluster: Cluster, kubeconfig: Path) -> dict[str, BaseException | None]:
    """kubeconfig: where to make one that proxies can add themselves to."""
    shutil.copy(cluster.kubeconfig, kubeconfig)
    before = os.environ["KUBECONFIG"]
    os.environ["KUBECONFIG"] = str(kubeconfig)
    try:
        return asyncio.run(_play_at_once(items, cluster, kubeconfig))
    finally:
        os.environ["KUBECONFIG"] = before


async def _play_at_once(items: list[Any], cluster: Cluster, kubeconfig: Path) -> dict[str, BaseException | None]:
    # An operator that fails ends its process; this one goes on, and the test sees `Operator.failed`.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
    limit = asyncio.Semaphore(AT_ONCE)

    async def play(item: Any) -> None:
        slug = re.sub(r"[^a-z0-9]+", "-", item.name.removeprefix("test_").lower()).strip("-")
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        async with limit, asyncio.timeout(LONGEST):
            name = f"{slug[:50].strip('-')}-{os.urandom(3).hex()}"
            async with opened(cluster, kubeconfig=kubeconfig, namespace=name) as world:
                await item.function(world=world, **parameters)

    ended = await asyncio.gather(*(play(item) for item in items), return_exceptions=True)
    return {item.nodeid: error for item, error in zip(items, ended, strict=True)}
