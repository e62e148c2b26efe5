"""A schedule with slots that come when a test wants them: its operators' clocks are set, the API server's is not."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from comd_api.kinds import SCHEDULE
from comd_operator.schedules.runs import slot_name
from comd_operator.shell.operator import Operator
from tests.api.world import PATIENCE, World, make_manifest

NAME = "nightly"


def make_schedule(name: str = NAME, *, template: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """Of each minute, with a run of one round."""
    run = make_manifest(**{"rounds__count": 1, **(template or {})})
    return {
        "apiVersion": "comd.dev/v1alpha1",
        "kind": SCHEDULE.name,
        "metadata": {"name": name},
        "spec": {"schedules": ["* * * * *"], "runTemplate": {"spec": run["spec"]}, **spec},
    }


class Slots:
    """Of each minute, by a clock that is ahead of the true one."""

    def __init__(self) -> None:
        self._ahead = timedelta()
        self.first = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=2)
        """More than a minute ahead, for schedules that are made now have no past."""

    @property
    def daily(self) -> str:
        """An expression that has the first slot, and no other for a day."""
        return f"{self.first.minute} {self.first.hour} * * *"

    @property
    def two(self) -> list[str]:
        """Expressions that have the first two slots, and no others for a day."""
        return [f"{slot.minute} {slot.hour} * * *" for slot in (self.first, self.slot(1))]

    def now(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def set_clock(self, operator: Operator) -> None:
        operator._schedules.now = self.now

    def come(self, number: int, *, seconds: float = 0.0) -> None:
        """The clock is set so that the slot comes in so many seconds."""
        self._ahead = self.slot(number) - datetime.now(UTC) - timedelta(seconds=seconds)

    def slot(self, number: int) -> datetime:
        return self.first + timedelta(minutes=number)

    def run(self, number: int, *, schedule: str = NAME) -> str:
        """The name of its run."""
        return slot_name(schedule, self.slot(number))


async def apply_schedule(world: World, document: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = await world.api.create(world.schedules(), document)
    return made


async def change_schedule(world: World, name: str = NAME, **spec: Any) -> None:
    """So that it is looked at, too: clocks that are set wake nobody."""
    await world.api.patch(world.schedules(name), {"spec": spec}, content_type="application/merge-patch+json")


async def look(world: World, name: str = NAME) -> None:
    """Somebody changes it: it is looked at. (A clock that a test sets wakes nobody.)"""
    label = {"metadata": {"labels": {"looked": f"at-{time.monotonic_ns()}"}}}
    await world.api.patch(world.schedules(name), label, content_type="application/merge-patch+json")


async def until_schedule(
    world: World, what: Callable[[dict[str, Any]], bool], name: str = NAME, *, seconds: float = PATIENCE
) -> dict[str, Any]:
    """The status once it is as wanted."""
    end = time.monotonic() + seconds
    while True:
        status: dict[str, Any] = (await world.api.get(world.schedules(name))).get("status", {})
        if what(status):
            return status
        assert time.monotonic() < end, f"not so after {seconds:g} s: {status}"
        await asyncio.sleep(0.1)


async def told(world: World, name: str = NAME) -> list[str]:
    """Reasons of the events, in their order."""
    return [event["reason"] for event in await world.events(name, kind=SCHEDULE)]
