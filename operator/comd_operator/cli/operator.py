"""`comd operator`: works in a cluster until it is stopped."""

import argparse
import os
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from comd_api.exit_codes import ExitCode
from comd_operator.planner import ClusterDefaults
from comd_operator.shell.options import Options, from_environment, variable_of

FILLED_IN = tuple(field.name for field in fields(ClusterDefaults))
"""What runs may leave out: `comd plan --kubernetes` takes it too."""


def add_options(parser: argparse._ActionsContainer, names: Collection[str] | None = None) -> None:
    for option in fields(Options):
        if names is not None and option.name not in names:
            continue
        kind = type(option.default)
        shown = f"default: {option.default}; " if option.default not in ("", None) else ""
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            dest=option.name,
            type=kind if kind is not bool else str,
            choices=None if kind is not bool else ("true", "false"),
            metavar=None if kind is bool else kind.__name__.upper(),
            help=f"{option.metadata['help']} ({shown}{variable_of(option.name)})",
        )


def operator_options(arguments: argparse.Namespace) -> Options:
    """Of the command line, else of the environment. Raises UserError."""
    given: dict[str, Any] = {option.name: getattr(arguments, option.name, None) for option in fields(Options)}
    if given["leader_election"] is not None:
        given["leader_election"] = given["leader_election"] == "true"
    return from_environment(os.environ, **given)


def operator_command(arguments: argparse.Namespace) -> int:
    options = operator_options(arguments)

    from comd_operator.shell.handlers import run

    return ExitCode.DONE if run(options) else ExitCode.FAILED
