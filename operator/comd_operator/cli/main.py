"""The command `comd`.

Exit codes: 0 done; 64 the manifest or the command line is wrong; 65 the data is; 75 interrupted or suspended, run it
again to go on; 1 the run failed for another reason.
"""

import argparse
import errno
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

from comd_api.exit_codes import ComdError, ExitCode
from comd_operator.cli.operator import FILLED_IN, add_options, operator_command, operator_options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(ExitCode.USER_ERROR)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code. A ComdError is a sentence on stderr, never a traceback."""
    arguments = parser().parse_args(argv)
    try:
        return _dispatch(arguments)
    except ComdError as error:
        for line in str(error).splitlines():
            print(f"comd: {line}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return ExitCode.DONE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"comd: {error.filename or 'the work dir'}: {error.strerror}; make room and run it again", file=sys.stderr
        )
        return ExitCode.TRY_AGAIN
    except KeyboardInterrupt:
        return ExitCode.TRY_AGAIN


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="comd", description="Competitive multi-modal distillation.")
    top.add_argument("--version", action="version", version=f"comd {_version()}")
    commands = top.add_subparsers(
        dest="command",
        required=True,
        metavar="{run,plan,validate,doctor,trigger,promote,operator}",
        parser_class=_Parser,
    )

    run = commands.add_parser("run", help="run a manifest on this machine; run it again to go on where it stopped")
    _add_file(run)
    run.add_argument("--work-dir", type=Path, help="folder for status, logs and artifacts (default: runs/NAME)")
    run.add_argument(
        "--storage",
        metavar="URI",
        help="where artifacts live and relative sources start: s3://…, file:///…, a folder, or `manifest` for the "
        "manifest's own "
        "(default: the folder store in the work dir)",
    )
    run.add_argument("--quiet", action="store_true", help="only warnings and the tables at the end")

    plan = commands.add_parser("plan", help="show stages, phases, inputs and outputs without running anything")
    _add_file(plan)
    plan.add_argument("--kubernetes", action="store_true", help="every object that the operator would create, as YAML")
    plan.add_argument(
        "--storage", metavar="URI", help="as of `run`; rows are counted where the files are on this machine"
    )
    add_options(plan.add_argument_group("with --kubernetes, as of the operator"), FILLED_IN)

    validate = commands.add_parser("validate", help="check manifests as the API server would")
    validate.add_argument("files", type=Path, nargs="*", metavar="FILE")
    validate.add_argument(
        "-f", "--filename", type=Path, action="append", default=[], metavar="FILE", help="the same, as kubectl has it"
    )
    validate.set_defaults(complain=validate.error)

    doctor = commands.add_parser("doctor", help="look at everything that a run needs, without running anything")
    _add_file(doctor)
    doctor.add_argument("--work-dir", type=Path, help="as of `run`")
    doctor.add_argument("--storage", metavar="URI", help="as of `run`")
    doctor.add_argument(
        "--kubernetes", action="store_true", help="as for a run in a cluster: the manifest's own storage"
    )
    doctor.add_argument("-o", "--output", choices=("text", "json"), default="text", help="lines, or one JSON object")
    add_options(doctor.add_argument_group("with --kubernetes, as of the operator"), FILLED_IN)

    trigger = commands.add_parser("trigger", help="make a run of a DistillationSchedule's template now")
    trigger.add_argument("name", metavar="NAME", help="of the schedule")
    trigger.add_argument("-n", "--namespace", help="of the schedule (default: the kubeconfig's, else the pod's)")
    trigger.add_argument("--context", help="of the kubeconfig")

    promote = commands.add_parser("promote", help="show where a channel points and has pointed, or point it elsewhere")
    promote.add_argument(
        "-f", "--filename", type=Path, metavar="FILE", help="manifest whose storage and channel are meant"
    )
    promote.add_argument(
        "--storage", metavar="URI", help="s3://… or a folder (default: the manifest's own, else that of its work dir)"
    )
    promote.add_argument("--channel", metavar="NAME", help="default: the manifest's, else stable")
    promote.add_argument(
        "--to", metavar="WHAT", help="previous, a record of the list, or NAMESPACE/RUN; without it nothing is changed"
    )

    operator = commands.add_parser("operator", help="work in a Kubernetes cluster until stopped")
    add_options(operator)

    crds = commands.add_parser("crds")
    crds.add_argument("--out", type=Path, nargs="+", metavar="FOLDER")

    installed = commands.add_parser("installed")
    installed.add_argument("--url", required=True, help="of the operator's Service")
    installed.add_argument("--seconds", type=float, default=60.0, help="to wait for all of it")
    add_options(installed)
    return top


def _add_file(command: argparse.ArgumentParser) -> None:
    """By position, or as kubectl has it."""
    command.add_argument(
        "file", type=Path, nargs="?", help="YAML file with one DistillationRun or DistillationSchedule"
    )
    command.add_argument("-f", "--filename", type=Path, metavar="FILE", help="the same, as kubectl has it")
    command.set_defaults(complain=command.error)


def _file_of(arguments: argparse.Namespace) -> Path:
    files = [file for file in (arguments.file, arguments.filename) if file is not None]
    if len(files) != 1:
        arguments.complain("one file, not two" if files else "the following arguments are required: file")
    return Path(files[0])


def _dispatch(arguments: argparse.Namespace) -> int:
    """Modules are imported by the command that needs them: `comd validate` starts without rich, `comd plan` without
    subprocess."""
    match arguments.command:
        case "run":
            from comd_operator.cli.run import run_command

            return run_command(
                _file_of(arguments), work_dir=arguments.work_dir, storage=arguments.storage, quiet=arguments.quiet
            )
        case "plan":
            from comd_operator.cli.plan import plan_command

            if arguments.kubernetes:
                from comd_operator.cli.objects import objects_command

                return objects_command(_file_of(arguments), operator_options(arguments))
            return plan_command(_file_of(arguments), storage=arguments.storage)
        case "doctor":
            from comd_operator.cli.doctor import doctor_command

            if arguments.kubernetes and (arguments.storage is not None or arguments.work_dir is not None):
                arguments.complain(
                    "--storage and --work-dir are of runs on this machine; leave them out with --kubernetes"
                )
            return doctor_command(
                _file_of(arguments),
                work_dir=arguments.work_dir,
                storage=arguments.storage,
                output=arguments.output,
                options=operator_options(arguments) if arguments.kubernetes else None,
            )
        case "trigger":
            from comd_operator.cli.trigger import trigger_command

            return trigger_command(arguments.name, namespace=arguments.namespace, context=arguments.context)
        case "promote":
            from comd_operator.cli.promote import promote_command

            return promote_command(
                arguments.filename, storage=arguments.storage, channel=arguments.channel, to=arguments.to
            )
        case "operator":
            return operator_command(arguments)
        case "validate":
            from comd_operator.cli.validate import validate_command

            files = [*arguments.files, *arguments.filename]
            if not files:
                arguments.complain("the following arguments are required: FILE")
            return validate_command(files)
        case "installed":
            from comd_operator.cli.installed import installed_command

            return installed_command(operator_options(arguments), url=arguments.url, seconds=arguments.seconds)
        case _:
            from comd_operator.cli.crds import FOLDERS, write_crds

            for folder in arguments.out or FOLDERS:
                for path in write_crds(folder):
                    print(path)
            return ExitCode.DONE


def _version() -> str:
    try:
        return version("comd")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
