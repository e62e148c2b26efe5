"""`comd run FILE`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from comd_api.exit_codes import ExitCode
from comd_api.run import DistillationRun
from comd_api.status import ExitClass, RunStatus
from comd_operator.cli.plan import print_plan
from comd_operator.cli.storage import choose_storage
from comd_operator.local.process import TRAINER_COMMAND
from comd_operator.local.report import print_tables, tables
from comd_operator.local.runner import LocalRunner, open_run
from comd_operator.local.student import student_folder
from comd_operator.local.view import open_view
from comd_operator.local.workdir import WorkDir
from comd_operator.policies import ledger
from comd_operator.validation import load_run

CODE_OF_CLASS: dict[ExitClass, ExitCode] = {"UserError": ExitCode.USER_ERROR, "BadData": ExitCode.BAD_DATA}


def run_command(
    file: Path,
    *,
    work_dir: Path | None,
    storage: str | None,
    quiet: bool,
    command: Sequence[str] = TRAINER_COMMAND,
) -> int:
    """Runs a manifest to its end, or on from where it stopped. Returns the exit code of `comd`.

    command: what starts a trainer; tests have their own.
    """
    manifest = load_run(file)  # of a schedule its template's, once and now
    work = WorkDir(work_dir or Path("runs") / manifest.metadata.name)
    work.create()
    with work.locked():
        run = open_run(work, manifest, storage=choose_storage(manifest.spec, storage, default=work.store))
        before = run.status or RunStatus()
        if before.phase == "Succeeded":
            print(
                f"{run.metadata.name} is finished; "
                f"to run it once more, use another --work-dir or remove {work.status_file}"
            )
            return _finish(work, run)
        if not quiet:
            print_plan(run, sys.stderr) if before.start_time is None else print(_going_on(run), file=sys.stderr)
        run = LocalRunner(work=work, run=run, view=open_view(quiet=quiet), command=command).run()
        return _finish(work, run)


def _going_on(run: DistillationRun) -> str:
    status = run.status or RunStatus()
    done = [stage.name for stage in status.stages if stage.done]
    return f"{run.metadata.name} goes on at {status.stage}; done: {', '.join(done) or 'nothing yet'}"


def _finish(work: WorkDir, run: DistillationRun) -> int:
    status = run.status or RunStatus()
    print_tables(tables(run), sys.stdout)
    if status.student is not None:
        folder = student_folder(status.student)
        print(f"student: {work.student if folder is not None else status.student.uri}")
    message = next((condition.message for condition in status.conditions if condition.type == "Ready"), "")
    match status.phase:
        case "Succeeded":
            return ExitCode.DONE
        case "Failed":
            stage = ledger.failed_stage(status)
            log = f"; its log: {work.log(stage.job_name)}" if stage is not None and stage.job_name else ""
            print(f"comd: {run.metadata.name} failed in {message}{log}", file=sys.stderr)
            return (
                CODE_OF_CLASS.get(stage.exit_class, ExitCode.FAILED)
                if stage is not None and stage.exit_class
                else ExitCode.FAILED
            )
        case _:
            print(f"comd: {run.metadata.name} stopped: {message}", file=sys.stderr)
            return ExitCode.TRY_AGAIN
