"""How far running stages are, asked of their trainers: each at most every half minute, for a status that is written more often
is a load on the API server that tells nobody more."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

import aiohttp

from comd_api.stage import Progress as Said
from comd_operator.planner.defaults import TRAINER_PORT
from comd_operator.policies.progress import progress_text

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 3.0
AT_ONCE = 16
MOST_BYTES = 65_536


@dataclass
class _Followed:
    ip: str
    run_uid: str
    due: float
    text: str | None = None


class Progress:
    """Asks the first pod of each followed Job. One that can't be reached has no progress, and nothing else happens."""

    def __init__(
        self,
        *,
        every_seconds: float,
        on_change: Callable[[str], None],
        clock: Callable[[], float],
        port: int = TRAINER_PORT,
    ) -> None:
        self._every, self._on_change, self._clock, self._port = every_seconds, on_change, clock, port
        self._followed: dict[str, _Followed] = {}
        self._wake = asyncio.Event()

    def of(self, job_uid: str) -> str | None:
        followed = self._followed.get(job_uid)
        return followed.text if followed is not None else None

    def follow(self, job_uid: str, *, ip: str, run_uid: str) -> None:
        followed = self._followed.get(job_uid)
        if followed is not None and followed.ip == ip:
            return
        self._followed[job_uid] = _Followed(ip=ip, run_uid=run_uid, due=self._clock() + self._every)
        self._wake.set()

    def forget(self, job_uid: str) -> None:
        self._followed.pop(job_uid, None)

    def keep_only(self, job_uids: Collection[str], *, run_uid: str) -> None:
        """Of a run's Jobs those that are still there: the address of one that vanished may be another's soon."""
        gone = [uid for uid, entry in self._followed.items() if entry.run_uid == run_uid and uid not in job_uids]
        for uid in gone:
            del self._followed[uid]

    async def run(self) -> None:
        """Until it is cancelled."""
        limit = asyncio.Semaphore(AT_ONCE)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)) as session:
            while True:
                now = self._clock()
                due = [entry for entry in self._followed.values() if entry.due <= now]
                for entry in due:
                    entry.due = now + self._every
                await asyncio.gather(*(self._ask(session, entry, limit) for entry in due))
                self._wake.clear()
                next_due = min((entry.due for entry in self._followed.values()), default=now + self._every)
                with contextlib.suppress(TimeoutError):  # not wait_for: see WorkQueue.get
                    async with asyncio.timeout(max(0.05, next_due - self._clock())):
                        await self._wake.wait()

    async def _ask(self, session: aiohttp.ClientSession, entry: _Followed, limit: asyncio.Semaphore) -> None:
        host = f"[{entry.ip}]" if ":" in entry.ip else entry.ip
        async with limit:
            try:
                # A redirect would send us wherever a container likes, and its answer could have any length.
                url = f"http://{host}:{self._port}/progress"
                async with session.get(url, allow_redirects=False) as answer:
                    said = Said.model_validate(json.loads(await answer.content.read(MOST_BYTES)))
                text = progress_text(said)
            except Exception as error:  # Whatever a container answers, no other run suffers from it.
                log.debug("no progress from %s: %r", entry.ip, error)
                return
        if text != entry.text:
            entry.text = text
            self._on_change(entry.run_uid)
