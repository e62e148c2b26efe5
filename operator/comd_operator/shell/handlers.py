"""kopf's side: `kopf run -m comd_operator.shell.handlers` starts the operator, and so does `comd operator`.

kopf keeps the process: command line, login, signals, start and end. Objects are watched by our own reflectors and not by
`@kopf.on.event`, because kopf's handlers are told of what a list holds but not where it ends: what vanished in a gap of the
watch stays in their memory for ever, and a run would wait for a Job that is long gone.
"""

from typing import Any

import kopf

from comd_api.exit_codes import UserError
from comd_operator.shell import logs
from comd_operator.shell.operator import Operator
from comd_operator.shell.options import Options, from_environment


@kopf.on.startup(errors=kopf.ErrorsMode.PERMANENT)
async def start(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: Any) -> None:
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    try:
        options = memo.get("options") or from_environment()
        logs.configure(log_format=options.log_format, level=options.log_level)
        memo["operator"] = Operator(options)
        await memo["operator"].start()
    except UserError as error:
        memo["error"] = error  # which kopf would wrap in errors of its own
        raise


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
    memo = kopf.Memo(options=options)
    namespaces = options.namespace_list
    try:
        kopf.run(standalone=True, clusterwide=not namespaces, namespaces=namespaces, memo=memo)
    except Exception:
        if memo.get("error") is None:
            raise
    if memo.get("error") is not None:
        raise memo["error"]
    operator: Operator | None = memo.get("operator")
    return operator is not None and operator.failed is None
