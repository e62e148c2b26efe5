"""kopf's side: `kopf run -m comd_operator.shell.handlers` starts the operator, and so does `comd operator`.

kopf keeps the process: command line, login, signals, start and end. Objects are watched by our own reflectors and not by
`@kopf.on.event`, because kopf's handlers are told of what a list holds but not where it ends: what vanished in a gap of the
watch stays in their memory for ever, and a run would wait for a Job that is long gone.
"""

import asyncio
import contextlib
import getpass
import os
from typing import Any

import kopf

from comd_operator.shell import logs
from comd_operator.shell.operator import Operator
from comd_operator.shell.options import Options, from_environment


@kopf.on.startup(errors=kopf.ErrorsMode.PERMANENT)
async def start(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: Any) -> None:
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    if memo.get("operator") is None:  # by `kopf run`
        options = from_environment()
        logs.configure(log_format=options.log_format, level=options.log_level)
        memo["operator"] = Operator(options)
        await memo["operator"].start()


@kopf.on.cleanup()
async def stop(memo: kopf.Memo, **_: Any) -> None:
    operator: Operator | None = memo.get("operator")
    if operator is not None:
        await operator.stop()


def run(options: Options) -> bool:
    """Runs kopf until a signal comes. Whether it was a signal that ended it, and not an error of our own.

    Raises:
        UserError: it can't be started like this.
    """
    logs.configure(log_format=options.log_format, level=options.log_level)
    operator = Operator(options)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_keep(operator))
    return operator.failed is None


async def _keep(operator: Operator) -> None:
    """The operator starts before kopf does, which would tell an error of the start with a traceback of its own."""
    namespaces = operator.options.namespace_list
    name_the_user()
    try:
        await operator.start()
        await kopf.operator(
            standalone=True, clusterwide=not namespaces, namespaces=namespaces, memo=kopf.Memo(operator=operator)
        )
    finally:
        await operator.stop()


def name_the_user() -> None:
    """kopf asks for the user's name, which images and platforms that choose a user of their own do not know."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ["LOGNAME"] = "comd"
