"""Leader election: never two at once, never long without one."""

import asyncio
import random
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comd_operator.runtime.api import ApiError
from comd_operator.runtime.lease import JITTER, Lease, LeaseLostError
from tests.unit.lease_world import DEADLINE, DURATION, RETRY, LeaseServer, Replica
from tests.unit.virtual_time import now, run

SEEDS = st.integers(0, 2**32)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_never_two_at_once_whatever_networks_and_processes_do(seed: int) -> None:
    """Slow, lossy and broken connections, writes that arrive half a minute late, frozen processes, clocks that differ, crashes,
    restarts. Looked at fifty times a second from outside."""
    rng = random.Random(seed)
    replicas: list[Replica] = []
    leaving: list[Replica] = []

    async def watch() -> None:
        while True:
            holders = [replica.name for replica in (*replicas, *leaving) if replica.lease.is_held()]
            assert len(holders) <= 1, f"two at once after {now():.2f} s: {holders}"
            await asyncio.sleep(0.02)

    def disturb(replica: Replica) -> None:
        link = replica.link
        link.there = rng.choice([0.01, 0.01, 1.0, 4.0, 30.0])
        link.back = rng.choice([0.01, 0.01, 1.0, 4.0, 30.0])
        link.lost_there = rng.choice([0.0, 0.0, 0.3, 1.0])
        link.lost_back = rng.choice([0.0, 0.0, 0.3, 1.0])
        link.refuse = rng.choice([None, None, None, ApiError(status=500, reason="x", message="x")])
        if rng.random() < 0.3:
            link.running.clear()
        else:
            link.running.set()

    def heal(replica: Replica) -> None:
        link = replica.link
        link.there = link.back = 0.01
        link.lost_there = link.lost_back = 0.0
        link.refuse = None
        link.running.set()

    async def main() -> None:
        server = LeaseServer()
        replicas.extend(Replica(server, seed=rng.getrandbits(32), drift=True) for _ in range(3))
        watching = asyncio.ensure_future(watch())
        for _ in range(12):
            await asyncio.sleep(rng.uniform(0.0, 12.0))
            replica = rng.choice(replicas)
            what = rng.random()
            if what < 0.6:
                disturb(replica)
            elif what < 0.8:
                heal(replica)
            else:
                replicas.remove(replica)
                if what < 0.9:
                    replica.stopping = rng.uniform(0.0, 20.0)
                    replica.task.cancel()
                    leaving.append(replica)
                else:
                    replica.crash()
                replicas.append(Replica(server, seed=rng.getrandbits(32), drift=True))
            for index, old in enumerate(replicas):
                if old.task.done():
                    assert isinstance(old.task.exception(), LeaseLostError)
                    replicas[index] = Replica(server, seed=rng.getrandbits(32), drift=True)
        for replica in replicas:
            heal(replica)
        for index, old in enumerate(replicas):
            if old.task.done():
                replicas[index] = Replica(server, seed=rng.getrandbits(32), drift=True)
        # Requests of before may still arrive, and each may take the Lease in the name of who gave up on it.
        await asyncio.sleep(30.0 + 2 * DURATION)
        assert sum(replica.lease.is_held() for replica in replicas) == 1
        assert not watching.done(), watching.exception()
        watching.cancel()

    run(main)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_after_a_crash_another_takes_over_in_time(seed: int) -> None:
    async def main() -> None:
        server = LeaseServer()
        first, *others = [Replica(server, seed=seed + number, drift=True) for number in range(4)]
        while not first.lease.is_held():
            await asyncio.sleep(0.1)
            if (holder := next((other for other in others if other.lease.is_held()), None)) is not None:
                others[others.index(holder)], first = first, holder
        await asyncio.sleep(random.Random(seed).uniform(20.0, 40.0))
        crashed = now()
        first.crash()
        while not any(other.lease.is_held() for other in others):
            await asyncio.sleep(0.01)
            assert now() - crashed < DURATION * 1.02 + 2 * RETRY

    run(main)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_after_a_shutdown_another_takes_over_at_once_and_not_before_work_has_stopped(seed: int) -> None:
    async def main() -> None:
        server = LeaseServer()
        first = Replica(server, seed=seed)
        await first.until_held()
        second = Replica(server, seed=seed + 1)
        await asyncio.sleep(random.Random(seed).uniform(5.0, 30.0))
        first.stopping = 1.0
        start = now()
        await first.shut_down()
        assert not first.lease.is_held()
        ((_, stopped),) = first.led
        assert stopped == start + 1.0
        taken = await second.until_held()
        assert stopped < taken < stopped + RETRY * JITTER + 0.1
        assert first.task.cancelled()

    run(main)


def test_it_is_renewed_as_long_as_work_takes_to_stop() -> None:
    async def main() -> None:
        server = LeaseServer()
        first = Replica(server)
        await first.until_held()
        second = Replica(server, seed=1)
        first.stopping = 60.0
        asyncio.get_running_loop().call_later(5.0, first.task.cancel)
        while not first.task.done():
            if now() > 1.0 and not first.led:
                assert first.lease.is_held()
            assert not second.lease.is_held()
            await asyncio.sleep(0.1)
        assert await second.until_held() < first.led[0][1] + RETRY * JITTER + 0.1

    run(main)


@pytest.mark.parametrize("way", ["lost there", "lost back", "refused", "slow"])
def test_who_cannot_renew_stops_before_anybody_can_take_over(way: str) -> None:
    async def main() -> None:
        server = LeaseServer()
        first = Replica(server)
        await first.until_held()
        await asyncio.sleep(7.0)
        renewed = [now()]
        server.on_write = lambda _: renewed.append(now())
        await asyncio.sleep(5.0)
        link = first.link
        link.lost_there = float(way == "lost there")
        link.lost_back = float(way == "lost back")
        link.refuse = ApiError(status=500, reason="x", message="x") if way == "refused" else None
        link.there = 1000.0 if way == "slow" else 0.001
        last = renewed[-1]
        first.stopping = 2.0
        with pytest.raises(LeaseLostError, match="could not be renewed in 10 s"):
            await first.task
        ((_, stopped),) = first.led
        assert last + DEADLINE - 0.1 < stopped == now() < last + DURATION
        assert not first.lease.is_held()

    run(main)


def test_work_that_does_not_let_itself_be_stopped_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        server = LeaseServer()
        first = Replica(server)
        await first.until_held()
        start = now()
        first.stopping = 1000.0
        first.link.lost_there = 1.0
        with pytest.raises(LeaseLostError):
            await first.task
        assert now() < start + DURATION
        assert not first.led
        assert "does not let itself be stopped" in caplog.text

    run(main)


def test_one_dead_connection_costs_nothing() -> None:
    """A request that hangs is given up in time for another."""

    async def main() -> None:
        first = Replica(LeaseServer())
        await first.until_held()
        for _ in range(20):
            before = len(first.link.requests)
            first.link.lost_there = 1.0
            while len(first.link.requests) == before:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            first.link.lost_there = 0.0
            for _ in range(100):
                assert first.lease.is_held()
                await asyncio.sleep(0.1)
        assert not first.task.done()

    run(main)


def test_a_standby_does_not_hang_on_a_dead_connection() -> None:
    async def main() -> None:
        second = Replica(LeaseServer())
        second.link.lost_there = 1.0
        await asyncio.sleep(1.0)
        second.link.lost_there = 0.0
        assert await second.until_held() < DEADLINE / 2 + RETRY * JITTER + 0.1

    run(main)


def test_an_answer_that_is_lost_costs_nothing() -> None:
    """The renewal has happened, and the version has moved on without us."""

    async def main() -> None:
        server = LeaseServer()
        first = Replica(server)
        await first.until_held()
        for _ in range(10):
            version = server.version
            first.link.lost_back = 1.0
            while server.version == version:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            first.link.lost_back = 0.0
            await asyncio.sleep(15.0)
            assert first.lease.is_held()
        assert first.led == []

    run(main)


def test_somebody_who_annotates_the_lease_is_no_rival() -> None:
    async def main() -> None:
        server = LeaseServer()
        first = Replica(server)
        await first.until_held()
        for number in range(10):
            assert server.lease is not None
            server.store({**server.lease, "metadata": {**server.lease["metadata"], "annotations": {"n": str(number)}}})
            await asyncio.sleep(3.0)
            assert first.lease.is_held()
        assert server.get()["metadata"]["annotations"] == {"n": "9"}

    run(main)


def test_one_request_renews() -> None:
    async def main() -> None:
        first = Replica(LeaseServer())
        await first.until_held()
        first.link.requests.clear()
        await asyncio.sleep(60.0)
        assert set(first.link.requests) == {"update"}
        assert 60 / (RETRY * JITTER) - 1 <= len(first.link.requests) <= 60 / RETRY

    run(main)


def test_a_lease_that_is_deleted_is_made_again_by_who_holds_it() -> None:
    async def main() -> None:
        server = LeaseServer()
        first = Replica(server)
        await first.until_held()
        second = Replica(server, seed=1)
        await asyncio.sleep(10.0)
        for _ in range(5):
            server.lease = None
            for _ in range(100):
                await asyncio.sleep(0.1)
                assert first.lease.is_held()
                assert not second.lease.is_held()
        assert server.holder == first.name

    run(main)


def test_a_lease_that_is_anothers_is_let_go_at_once() -> None:
    """Somebody has overwritten it by hand."""

    async def main() -> None:
        server = LeaseServer()
        first = Replica(server)
        await first.until_held()
        assert server.lease is not None
        server.store({**server.lease, "spec": {**server.lease["spec"], "holderIdentity": "somebody"}})
        start = now()
        with pytest.raises(LeaseLostError, match="held by somebody"):
            await first.task
        assert now() - start < RETRY * JITTER + 0.1
        assert not first.lease.is_held()
        assert first.led[0][1] == now()
        assert server.holder == "somebody"

    run(main)


def test_a_frozen_process_knows_without_running_a_line() -> None:
    async def main() -> None:
        server = LeaseServer()
        first = Replica(server)
        await first.until_held()
        first.link.running.clear()
        await asyncio.sleep(DEADLINE + RETRY * JITTER)
        assert not first.lease.is_held()
        second = Replica(server, seed=1)
        await second.until_held()
        first.link.running.set()
        with pytest.raises(LeaseLostError):
            await first.task
        assert second.lease.is_held()

    run(main)


@pytest.mark.parametrize("error", [None, RuntimeError("of its own")])
def test_work_that_ends_by_itself_gives_the_lease_back(error: Exception | None) -> None:
    async def main() -> None:
        server = LeaseServer()
        first = Replica(server)
        await first.shut_down()

        async def lead() -> None:
            await asyncio.sleep(5.0)
            if error is not None:
                raise error

        if error is None:
            await first.lease.run(lead)
        else:
            with pytest.raises(RuntimeError, match="of its own"):
                await first.lease.run(lead)
        assert server.holder == ""
        assert not first.lease.is_held()

    run(main)


def test_what_is_written_down() -> None:
    async def main() -> None:
        server = LeaseServer()
        first = Replica(server)
        await first.until_held()
        assert server.lease is not None
        made = server.lease["spec"]
        assert made["leaseTransitions"] == 0
        assert made["leaseDurationSeconds"] == 15
        assert made["acquireTime"] == made["renewTime"]
        assert datetime.fromisoformat(made["renewTime"]).tzinfo is not None
        await asyncio.sleep(10.0)
        renewed = server.lease["spec"]
        assert renewed["acquireTime"] == made["acquireTime"] != renewed["renewTime"]
        await first.shut_down()
        assert server.lease["spec"]["holderIdentity"] == ""
        assert server.lease["spec"]["leaseDurationSeconds"] == 1
        second = Replica(server, seed=1)
        await second.until_held()
        taken = server.lease["spec"]
        assert (taken["holderIdentity"], taken["leaseTransitions"]) == (second.name, 1)
        assert taken["leaseDurationSeconds"] == 15

    run(main)


def test_another_duration_is_respected() -> None:
    """While the operator is updated, its replicas may differ in it."""

    async def main() -> None:
        server = LeaseServer()
        metadata = {"name": "comd", "namespace": "n"}
        server.store({"metadata": metadata, "spec": {"holderIdentity": "old", "leaseDurationSeconds": 60}})
        assert 60.0 <= await Replica(server).until_held() <= 60.1

    run(main)


def test_who_may_not_read_it_goes_on_trying(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        first = Replica(LeaseServer())
        first.link.refuse = ApiError(status=403, reason="Forbidden", message="no rights on leases")
        await asyncio.sleep(100.0)
        assert not first.task.done()
        assert "no rights on leases" in caplog.text
        first.link.refuse = None
        assert await first.until_held() < 100.0 + RETRY * JITTER + 0.1

    run(main)


@pytest.mark.parametrize(("duration", "deadline", "retry"), [(10, 10, 2), (15, 2, 2), (15, 10, 0)])
def test_times_without_a_margin_are_refused(duration: float, deadline: float, retry: float) -> None:
    with pytest.raises(ValueError, match="must be more than"):
        Lease(
            api=None,  # type: ignore[arg-type]
            namespace="n",
            name="x",
            identity="me",
            duration=duration,
            renew_deadline=deadline,
            retry_period=retry,
        )
