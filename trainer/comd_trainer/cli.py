"""`comd-trainer`: the command of a stage's container. `comd run` starts the same one as a subprocess."""

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from comd_api.exit_codes import ComdError, ExitCode, UserError
from comd_api.stage import StageConfig


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A wrong command line is the user's error; argparse's own code 2 would be tried again."""
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(ExitCode.USER_ERROR)


def main(argv: list[str] | None = None) -> int:
    parser = _Parser(prog="comd-trainer", description="Runs one stage of a distillation run.")
    parser.add_argument("--version", action="version", version=f"comd-trainer {version('comd')}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    run = commands.add_parser("run", help="run the phases of a stage, in order")
    run.add_argument(
        "--config", type=Path, help="file with the stage's config; default: the variable COMD_STAGE_CONFIG"
    )
    run.add_argument(
        "--termination-message", type=Path, default=Path("/dev/termination-log"), help="where the result goes"
    )
    run.add_argument("--scratch", type=Path, default=Path("/scratch"), help="folder for what may be lost")
    run.add_argument("--progress", type=Path, help="file that always holds the newest progress")
    run.add_argument("--port", type=int, help="serve /metrics, /healthz and /progress here (0: any free port)")
    run.add_argument("--address", default="0.0.0.0", help="address that the port is opened on")
    run.add_argument("--grace-seconds", type=float, default=25.0, help="how long phases may save after SIGTERM")
    arguments = parser.parse_args(argv)

    from comd_trainer.supervisor import Supervisor

    try:
        config = read_config(arguments.config)
    except ComdError as error:
        print(f"comd-trainer: {error}", file=sys.stderr)
        return error.exit_code
    supervisor = Supervisor(
        config=config,
        scratch=arguments.scratch,
        termination_message=arguments.termination_message,
        progress_file=arguments.progress,
        address=arguments.address,
        port=arguments.port,
        grace_seconds=arguments.grace_seconds,
    )
    return int(supervisor.run())


def read_config(path: Path | None) -> StageConfig:
    """The stage's config from a file or the environment.

    Raises:
        UserError: there is none, or it does not fit the contract.
    """
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"--config {path}: {error.strerror}") from error
    else:
        text = os.environ.get("COMD_STAGE_CONFIG", "")
        if not text:
            raise UserError("no stage config: give --config FILE or set COMD_STAGE_CONFIG")
    try:
        return StageConfig.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise UserError(f"the stage config is not JSON: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"the stage config does not fit this trainer: {place}: {first['msg']}") from error
