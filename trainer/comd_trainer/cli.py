"""`comd-trainer`: the command of a stage's container. `comd run` starts the same one as a subprocess."""

import argparse
import json
import logging
import os
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from comd_api.exit_codes import ComdError, ExitCode, UserError
from comd_api.stage import StageConfig
from comd_api.stages import needs_no_gpu

IN_TORCH = ("launch-", "nodes")
"""How the names of threads begin that call torch."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A wrong command line is the user's error; argparse's own code 2 would be tried again."""
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(ExitCode.USER_ERROR)


def main(argv: list[str] | None = None) -> int:
    parser = _Parser(
        prog="comd-trainer", description="Runs one stage of a distillation run, or looks at what it would need."
    )
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
    run.add_argument(
        "--address", default="::", help="address that the port is opened on; default: all, of IPv6 and of IPv4"
    )
    run.add_argument("--grace-seconds", type=float, default=25.0, help="how long phases may save after SIGTERM")
    run.add_argument(
        "--node-rank", type=int, help="which of numNodes this is, from 0; default: the variable JOB_COMPLETION_INDEX"
    )
    run.add_argument(
        "--rendezvous", help="host:port of node 0, where nodes meet; default: the variable COMD_RENDEZVOUS"
    )
    doctor = commands.add_parser("doctor", help="look at what a stage would need, without running it")
    doctor.add_argument("--config", type=Path, help="as of run")
    doctor.add_argument("--scratch", type=Path, help="folder that stages would use; left out where they run elsewhere")
    doctor.add_argument("-o", "--output", choices=("text", "json"), default="text", help="lines, or one JSON object")
    commands.add_parser("promote", help="tell or move where a channel points; asked as JSON on standard input")
    arguments = parser.parse_args(argv)
    if arguments.command == "doctor":
        return _doctor(arguments)
    if arguments.command == "promote":
        return _promote()

    try:
        config = read_config(arguments.config)
        node_rank = arguments.node_rank if arguments.node_rank is not None else node_rank_of(os.environ)
    except ComdError as error:
        print(f"comd-trainer: {error}", file=sys.stderr)
        return error.exit_code
    begin(config)
    from comd_trainer.supervisor import Supervisor

    supervisor = Supervisor(
        config=config,
        scratch=arguments.scratch,
        termination_message=arguments.termination_message,
        progress_file=arguments.progress,
        address=arguments.address,
        port=arguments.port,
        grace_seconds=arguments.grace_seconds,
        node_rank=node_rank,
        rendezvous=arguments.rendezvous or os.environ.get("COMD_RENDEZVOUS") or None,
    )
    return leave(supervisor.run())


def _doctor(arguments: argparse.Namespace) -> int:
    """Prints what was found; what libraries have to say goes to standard error."""
    from comd_trainer.logs import configure

    try:
        config = read_config(arguments.config)
        configure(run=config.run, stage="doctor", attempt=config.attempt, level=logging.CRITICAL)
        from comd_trainer.doctor import diagnose

        report = diagnose(config, scratch=arguments.scratch)
    except ComdError as error:
        print(f"comd-trainer: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        print(f"comd-trainer: {error.name} is not installed here; pip install 'comd[trainer]'", file=sys.stderr)
        return ExitCode.USER_ERROR
    print(json.dumps(report.to_wire()) if arguments.output == "json" else "\n".join(report.lines()))
    return report.exit_code


def _promote() -> int:
    """Prints what was asked, or what was done."""
    from comd_trainer.logs import configure

    configure(run="", stage="promote", attempt=1, level=logging.ERROR)
    try:
        from comd_trainer.promotion.command import Request, promote_by_hand

        print("\n".join(promote_by_hand(Request.model_validate_json(sys.stdin.read()))))
    except ValidationError as error:
        first = error.errors()[0]
        print(f"comd-trainer: --{first['loc'][0]}: {first['msg']}", file=sys.stderr)
        return ExitCode.USER_ERROR
    except ComdError as error:
        print(f"comd-trainer: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        print(f"comd-trainer: {error.name} is not installed here; pip install 'comd[trainer]'", file=sys.stderr)
        return ExitCode.USER_ERROR
    return ExitCode.DONE


def begin(config: StageConfig) -> None:
    """What takes longest is begun first: the fork server imports while this process imports the rest and opens what the stage needs."""
    from comd_trainer import launcher
    from comd_trainer.logs import configure

    # Before the fork server, which inherits what is set in the environment.
    configure(run=config.run, stage=config.stage, attempt=config.attempt)
    if not needs_no_gpu(config.stage):
        launcher.warm_up()


def leave(code: ExitCode) -> int:
    """The exit code, for an ordinary end where that can be. A thread that is inside torch (a launcher that did not stop, a store that does
    not answer) would abort the interpreter's own end, and the exit code with it: then the process goes at once."""
    if any(thread.name.startswith(IN_TORCH) for thread in threading.enumerate()):
        logging.shutdown()
        os._exit(code)
    return int(code)


def node_rank_of(environment: Mapping[str, str]) -> int:
    """Kubernetes numbers the pods of an Indexed Job. Raises UserError for what is no number."""
    text = environment.get("JOB_COMPLETION_INDEX") or "0"
    if not text.isdecimal():
        raise UserError(f"JOB_COMPLETION_INDEX is {text!r}; give the node's number, from 0, or --node-rank")
    return int(text)


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
