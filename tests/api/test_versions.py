"""Runs that another version of the operator has written to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from comd_operator.runtime.api import ApiError
from tests.api.operators import operating
from tests.api.world import PATIENCE, World, make_manifest

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/distillationruns.comd.dev"
PHASES = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/phase/enum"


@asynccontextmanager
async def a_newer_schema(world: World) -> AsyncIterator[None]:
    """In which a run can also be `Dreaming`."""

    async def patch(*operations: dict[str, Any]) -> None:
        await world.api.patch(CRD, list(operations), content_type="application/json-patch+json")

    await patch({"op": "add", "path": f"{PHASES}/-", "value": "Dreaming"})
    phases = (await world.api.get(CRD))["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"][
        "properties"
    ]["phase"]["enum"]
    try:
        yield
    finally:
        await patch({"op": "remove", "path": f"{PHASES}/{phases.index('Dreaming')}"})


async def dream(world: World, name: str) -> None:
    """The schema takes a moment to be the server's."""
    path = world.runs(name, subresource="status")
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await world.api.patch(
                    path, {"status": {"phase": "Dreaming"}}, content_type="application/merge-patch+json"
                )
                return
            except ApiError as error:
                if error.status != 422:
                    raise
                await asyncio.sleep(0.1)


async def test_a_status_that_can_t_be_read(world: World) -> None:
    """Its run is left alone, and those beside it are not."""
    async with a_newer_schema(world), world.proxied() as proxy, world.simulated():
        await world.apply(make_manifest("new"))
        await dream(world, "new")
        before = await world.run("new")
        async with operating(world, proxy):
            await world.apply(make_manifest("old", rounds__count=1))
            await world.until_phase("Succeeded", "old")
            await world.change("new", suspend=True)
            await asyncio.sleep(1.0)
        assert [call.path for call in proxy.writes() if "/new" in call.path] == []
        assert (await world.run("new"))["status"] == before["status"]
        await world.delete_run("new")
    assert all(name.startswith("old-") for name in world.job_names())
