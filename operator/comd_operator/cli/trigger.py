"""`comd trigger NAME`: makes a run of a schedule's template now, as `kubectl create job --from=cronjob/NAME` does. Nothing is written to
the schedule, so that no GitOps tool sees a difference; the run counts as active and in the history like any other of the schedule."""

import asyncio
import secrets
from typing import Any

from comd_api import API_VERSION
from comd_api.exit_codes import ExitCode, TryAgainError, UserError
from comd_api.kinds import RUN, SCHEDULE
from comd_api.schedule import DistillationSchedule
from comd_operator.runtime.api import Api, ApiError, namespaced
from comd_operator.runtime.credentials import current_namespace
from comd_operator.runtime.limiter import TokenBucket
from comd_operator.runtime.metrics import Metrics
from comd_operator.schedules.runs import manual_manifest
from comd_operator.validation import check_document

MARK_BYTES = 4


def trigger_command(name: str, *, namespace: str | None, context: str | None) -> int:
    made = asyncio.run(_trigger(name, namespace=namespace, context=context))
    print(f"{RUN.name.lower()}.{API_VERSION.partition('/')[0]}/{made} created")
    return ExitCode.DONE


async def _trigger(name: str, *, namespace: str | None, context: str | None) -> str:
    namespace = namespace or current_namespace(context=context) or "default"
    api = await Api.connect(
        limiter=TokenBucket(rate=0, burst=1), metrics=Metrics(), context=context, user_agent="comd-trigger"
    )
    try:
        return await trigger(api, name, namespace=namespace)
    finally:
        await api.close()


async def trigger(api: Api, name: str, *, namespace: str) -> str:
    """The name of the run that was made.

    Raises:
        UserError: there is no such schedule, it can't be read, or the run is refused.
        TryAgainError: the API server can't be asked.
    """
    what = f"{SCHEDULE.name} {namespace}/{name}"
    found = await _ask(api.get(namespaced(API_VERSION, SCHEDULE.plural, namespace, name)), what=what)
    if "deletionTimestamp" in found["metadata"]:
        raise UserError(f"{what} is being deleted")
    schedule, problems = check_document(found)
    if not isinstance(schedule, DistillationSchedule):
        raise UserError("\n".join(f"{what}: {problem}" for problem in problems))
    last = found.get("status", {}).get("lastSuccessfulRun")  # A manifest is checked without its status.
    manifest = manual_manifest(schedule, mark=secrets.token_hex(MARK_BYTES), last=last)
    path = namespaced(API_VERSION, RUN.plural, namespace)
    made = await _ask(api.create(path, manifest), what=f"{RUN.name} of {what}")
    return str(made["metadata"]["name"])


async def _ask(call: Any, *, what: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = await call
        return answer
    except ApiError as error:
        if error.status == 404:
            raise UserError(f"there is no {what}: {error.message}") from None
        if 400 <= error.status < 500:
            raise UserError(f"{what}: {error.message}") from None
        raise TryAgainError(f"{what}: the API server can't be asked: {error}") from None
