"""Every test here works on a real API server without nodes, in a namespace of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.api.world import World, connect
from tests.cluster.cluster import Cluster

CRD = Path(__file__).parents[2] / "crds" / "distillationruns.yaml"
Scenario = Callable[[World], Coroutine[Any, Any, None]]
Play = Callable[[Scenario], None]


@pytest.fixture(scope="session")
def installed(control_plane: Cluster) -> Cluster:
    """The control plane, with our custom resource."""
    control_plane.kubectl("apply", "-f", str(CRD))
    control_plane.kubectl("wait", "--for=create", "crd/distillationruns.comd.dev", "--timeout=30s")
    control_plane.kubectl("wait", "--for=condition=Established", "crd/distillationruns.comd.dev", "--timeout=30s")
    return control_plane


@pytest.fixture
def play(installed: Cluster, namespace: str) -> Play:
    """Plays a scenario: an asynchronous function of a world."""

    def run(scenario: Callable[[World], Awaitable[None]]) -> None:
        async def whole() -> None:
            api = await connect(installed.kubeconfig)
            try:
                await scenario(World(api, namespace))
            finally:
                await api.close()

        asyncio.run(whole())

    return run
