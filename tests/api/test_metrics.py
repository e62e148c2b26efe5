"""What the operator says of itself: metrics, probes, and how fast it asks."""

import asyncio
import re
import socket
from typing import Any

import aiohttp
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.api import life
from tests.api.operators import operating
from tests.api.proxy import Call, Fault
from tests.api.simulator import runs_on
from tests.api.world import World, make_manifest

NAME = "a-run-with-a-name"
ENDINGS = {"counter": r"_total$", "histogram": r"_seconds$", "gauge": r"(?<!_total)$"}
ONLY = {"phase", "result", "stage", "exit_class", "cause", "verb", "resource", "code", "reason", "version", "le"}
"""Labels: none of them grows with the runs."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


async def ask(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def scrape(port: int) -> dict[str, Metric]:
    status, text = await ask(port, "/metrics")
    assert status == 200
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    family = next(family for key, family in families.items() if name.startswith(key))
    samples = [sample for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


async def test_metrics_of_a_life(world: World) -> None:
    port = free_port()
    async with operating(world, address="127.0.0.1", port=port), world.simulated(runs_on) as nodes:
        await life.play(world, nodes, NAME)
        families = await scrape(port)
    own = [family for name, family in families.items() if not name.startswith(("process_", "python_"))]
    assert len(own) >= 15
    for family in own:
        name = family.name + ("_total" if family.type == "counter" else "")
        assert re.match(r"comd_[a-z_]+$", name), name
        assert re.search(ENDINGS[family.type], name), (family.type, name)
        assert re.match(r"[A-Z1].*\.$", family.documentation), (name, family.documentation)
        for sample in family.samples:
            assert set(sample.labels) <= ONLY, sample
            assert not any(NAME in text or world.namespace in text for text in sample.labels.values()), sample
    assert value(families, "comd_runs", phase="Succeeded") == 1
    assert value(families, "comd_runs") == 1
    assert value(families, "comd_stage_retries_total", stage="pretrain", exit_class="Failed") == 1
    assert value(families, "comd_stage_duration_seconds_count", stage="round", result="Succeeded") == 1
    assert value(families, "comd_stage_duration_seconds_count") == 3
    assert value(families, "comd_operator_leader") == 1
    assert value(families, "comd_operator_build_info") == 1
    assert value(families, "comd_operator_queue_depth") == 0
    assert value(families, "comd_operator_api_requests_total", verb="create", resource="jobs", code="201") == 5
    assert value(families, "comd_operator_api_requests_total", verb="delete", resource="jobs", code="200") == 1
    assert value(families, "comd_operator_events_total", reason="Succeeded") == 1
    for resource in ("distillationruns", "distillationschedules", "jobs", "pods"):
        assert 0 <= value(families, "comd_operator_watch_age_seconds", resource=resource) < 60


async def test_ready_when_everything_was_listed(world: World) -> None:
    """And alive before; a standby is ready as well, and says that it does not lead."""
    port, gate = free_port(), asyncio.Event()

    async def hold(call: Call) -> Fault | None:
        if call.what == "list pods":
            await gate.wait()
        return None

    async with world.proxied() as proxy:
        proxy.hook = hold
        async with operating(world, proxy, address="127.0.0.1", port=port):
            await world.until_so(lambda: proxy.count("list pods") > 0, lambda: proxy.calls)
            await world.apply(make_manifest())
            await asyncio.sleep(0.5)
            assert await ask(port, "/readyz") == (503, "the first lists are not complete\n")
            assert await ask(port, "/healthz") == (200, "ok\n")
            assert proxy.writes() == [], "nothing is decided by half of what is there"
            gate.set()
            await world.until_phase("Running")
            assert await ask(port, "/readyz") == (200, "ok\n")
    mine: dict[str, Any] = {"leader_election": True, "lease_namespace": world.namespace, "address": "127.0.0.1"}
    second = free_port()
    async with operating(world, identity="one", port=port, **mine) as first:
        await world.until_so(lambda: first.leading, lambda: "not leading")
        async with operating(world, identity="two", port=second, **mine) as standby:
            await world.until_so(standby.is_synced, lambda: "not synced")
            assert await ask(second, "/readyz") == (200, "ok\n")
            assert value(await scrape(second), "comd_operator_leader") == 0
            assert value(await scrape(port), "comd_operator_leader") == 1


async def test_no_faster_than_it_may(world: World) -> None:
    """Five requests a second, one at a time: counted where they arrive, and the wait is told."""
    port, rate = free_port(), 5.0
    async with (
        world.proxied() as proxy,
        world.simulated(runs_on),
        operating(world, proxy, qps=rate, burst=1, address="127.0.0.1", port=port),
    ):
        for number in range(8):
            await world.apply(make_manifest(f"run-{number}"))
        for number in range(8):
            await world.until_phase("Running", f"run-{number}")
        families = await scrape(port)
    times = [call.at for call in proxy.calls]
    assert len(times) > 16
    for first in range(len(times)):
        for last in range(first + 5, len(times)):
            # n requests take (n - 1) / rate; two may close up on their way here
            assert times[last] - times[first] >= (last - first - 1) / rate - 0.15
    assert times[-1] - times[0] < len(times) / rate * 1.5 + 1, "nor much slower"
    assert value(families, "comd_operator_api_rate_limit_wait_seconds_sum") > 5.0
    assert value(families, "comd_operator_api_rate_limit_wait_seconds_count") <= len(times) + 10
