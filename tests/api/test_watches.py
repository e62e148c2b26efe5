"""The watches and the store on a real API server: what the server really says, and in which order."""

import asyncio
import random
from collections import Counter
from typing import Any

from comd_operator.runtime.api import Api, ApiError
from comd_operator.runtime.metrics import Metrics
from comd_operator.runtime.reflector import Reflector
from comd_operator.runtime.store import Store
from tests.api.proxy import Call, Fault, Proxy, no_fault
from tests.api.world import PATIENCE, World, connect

NAMES = [f"thing-{number}" for number in range(8)]
OURS = "comd.dev/test"


def read(obj: dict[str, Any]) -> tuple[str, str, str]:
    metadata = obj["metadata"]
    return metadata["name"], metadata["resourceVersion"], metadata["labels"][OURS]


def make_reflector(world: World, api: Api, store: Store[tuple[str, str, str]]) -> Reflector[Any]:
    return Reflector(
        api=api,
        resource="configmaps",
        api_version="v1",
        namespace=world.namespace,
        params={"labelSelector": OURS},
        store=store,
        on_change=lambda _: None,
        metrics=Metrics(),
        inactivity_timeout=3.0,
    )


async def on_server(world: World) -> set[tuple[str, str, str]]:
    listed = await world.api.get(world.core("configmaps"), params={"labelSelector": OURS})
    return {read(obj) for obj in listed["items"]}


async def until_equal(world: World, store: Store[tuple[str, str, str]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while set(store) != await on_server(world):
            await asyncio.sleep(0.05)


async def test_the_store_is_like_the_server_whatever_happens_in_between(world: World) -> None:
    """Things come, change, go, come again under the same name, and leave the selector, while watches break, fall silent, lose their
    place and are refused, and while answers to our own writes are put in as late as they like."""
    rng = random.Random(11)
    store: Store[tuple[str, str, str]] = Store(read=read, owners=lambda record: (record[2],))
    late: list[asyncio.Task[None]] = []

    async def put(obj: dict[str, Any], *, after: float) -> None:
        await asyncio.sleep(after)
        store.put(obj)

    async def write(name: str) -> None:
        """Makes it, changes it, or takes its label and with it itself out of what is watched."""
        path, owner = world.core("configmaps"), rng.choice("xyz")
        labels = {OURS: None if rng.random() < 0.15 else owner}
        try:
            made = await world.api.create(path, {"metadata": {"name": name, "labels": {OURS: owner}}})
        except ApiError as error:
            if error.status != 409:
                raise
            change = {"metadata": {"labels": labels}, "data": {"n": str(rng.random())}}
            made = await world.api.patch(f"{path}/{name}", change, content_type="application/merge-patch+json")
        if OURS in made["metadata"].get("labels", {}) and rng.random() < 0.5:
            late.append(asyncio.create_task(put(made, after=rng.choice([0.0, 0.01, 0.2, 1.0, 3.0]))))

    async def delete(name: str) -> None:
        try:
            await world.api.delete(f"{world.core('configmaps')}/{name}")
        except ApiError as error:
            if error.status != 404:
                raise

    async def disturb(proxy: Proxy) -> None:
        match rng.randrange(8):
            case 0:
                proxy.end_watches()
            case 1:
                await proxy.refuse_watches(410, "Expired")
            case 2:
                await proxy.refuse_watches(500, "InternalError")
            case 3:
                proxy.stall("configmaps")
            case _:
                proxy.release()

    async def hook(_call: Call) -> Fault | None:
        if rng.random() < 0.7:
            return None
        return rng.choice([Fault(kind="Drop"), Fault(kind="Answer", status=429, retry_after=1), Fault(kind="Answer")])

    async with world.proxied() as proxy:
        api = await connect(world.kubeconfig, context=proxy.context)
        task = asyncio.create_task(make_reflector(world, api, store).run())
        proxy.hook = hook
        try:
            for _ in range(250):
                name = rng.choice(NAMES)
                await (delete(name) if rng.random() < 0.4 else write(name))
                if rng.random() < 0.1:
                    await disturb(proxy)
                await asyncio.sleep(rng.choice([0.0, 0.0, 0.05]))
            proxy.hook = no_fault
            proxy.release()
            await asyncio.gather(*late)
            await until_equal(world, store)
            verbs = Counter(call.verb for call in proxy.calls)
            assert verbs["list"] > 1, "it was never disturbed so that it had to begin anew"
            assert verbs["watch"] > 1
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait({task})
            await api.close()


async def test_a_thing_that_leaves_the_selector_is_gone_and_its_late_answer_too(world: World) -> None:
    store: Store[tuple[str, str, str]] = Store(read=read, owners=lambda record: (record[2],))
    task = asyncio.create_task(make_reflector(world, world.api, store).run())
    path = world.core("configmaps")
    try:
        made = await world.api.create(path, {"metadata": {"name": "a", "labels": {OURS: "x"}}})
        async with asyncio.timeout(PATIENCE):
            while store.get(world.namespace, "a") is None:
                await asyncio.sleep(0.01)
        change = {"metadata": {"labels": {OURS: None}}}
        await world.api.patch(f"{path}/a", change, content_type="application/merge-patch+json")
        async with asyncio.timeout(PATIENCE):
            while store.get(world.namespace, "a") is not None:
                await asyncio.sleep(0.01)
        assert store.put(made) == set()
        assert len(store) == 0
    finally:
        task.cancel()
        await asyncio.wait({task})
