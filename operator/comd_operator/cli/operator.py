"""`comd operator`: works in a cluster until it is stopped."""

import argparse
from dataclasses import fields

from comd_api.exit_codes import ExitCode
from comd_operator.shell.options import Options, from_environment, variable_of


def add_options(parser: argparse.ArgumentParser) -> None:
    for option in fields(Options):
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


def operator_command(arguments: argparse.Namespace) -> int:
    given = {option.name: getattr(arguments, option.name) for option in fields(Options)}
    if given["leader_election"] is not None:
        given["leader_election"] = given["leader_election"] == "true"
    options = from_environment(**given)

    from comd_operator.shell.handlers import run

    return ExitCode.DONE if run(options) else ExitCode.FAILED
