"""`comd doctor FILE`: what the stage `preflight` would find, here and now, without a run. The trainer looks; here is asked and told."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from comd_api.doctor import DoctorReport, Finding
from comd_api.exit_codes import ComdError, ExitCode, UserError
from comd_api.run import DistillationRun
from comd_api.stage import StageConfig
from comd_operator.cli.storage import choose_storage
from comd_operator.local.runner import on_one_machine
from comd_operator.local.workdir import WorkDir
from comd_operator.planner import fill, plan_job, problems, stage_config
from comd_operator.shell.options import Options
from comd_operator.validation import load_run

ANY_IMAGE = "comd-trainer"
DOCTOR_COMMAND = (sys.executable, "-m", "comd_trainer", "doctor")


def doctor_command(
    file: Path,
    *,
    work_dir: Path | None,
    storage: str | None,
    output: str,
    options: Options | None,
    command: Sequence[str] = DOCTOR_COMMAND,
) -> int:
    """Prints a line for each check, or with output `json` one object. Returns the exit code that the stage would end with.

    options: the operator's, for a run in a cluster: the manifest's own storage, nodes and GPUs; None for one on this machine.
    command: what starts the trainer; tests have their own.
    """
    manifest = load_run(file)
    findings: list[Finding] = []
    if options is None:
        work = WorkDir(work_dir or Path("runs") / manifest.metadata.name)
        chosen = choose_storage(manifest.spec, storage, default=work.store)
        run = manifest.replace(spec=manifest.spec.replace(storage=chosen))
        report = ask(on_one_machine(_preflight(run)), scratch=work.scratch, command=command)
        findings += _in_place_of(manifest, chosen.uri)
    else:
        run = fill(manifest, options.defaults)
        findings += _of_manifest(run)
        nowhere = run.spec.storage is None
        report = DoctorReport(findings=[]) if nowhere else ask(_preflight(run), scratch=None, command=command)
    report = DoctorReport(findings=[*findings, *report.findings])
    print(
        json.dumps({**report.to_wire(), "exitCode": report.exit_code})
        if output == "json"
        else "\n".join(report.lines())
    )
    return report.exit_code


def ask(config: StageConfig, *, scratch: Path | None, command: Sequence[str]) -> DoctorReport:
    """What the trainer says. Raises UserError when it can't be started, ComdError when it makes no sense."""
    argv = [*command, "--config", "/dev/stdin", "--output", "json"]
    argv += ["--scratch", str(scratch)] if scratch is not None else []
    done = subprocess.run(argv, input=json.dumps(config.to_wire()), stdout=subprocess.PIPE, text=True, check=False)
    try:
        return DoctorReport.model_validate(json.loads(done.stdout))
    except ValueError:
        if done.returncode == ExitCode.USER_ERROR:
            raise UserError("the trainer could not look at it; it has said why above") from None
        raise ComdError(
            f"the trainer ended with exit code {done.returncode} and said nothing that makes sense"
        ) from None


def _preflight(run: DistillationRun) -> StageConfig:
    job = plan_job(run.spec, run=run.metadata.name, stage="preflight", job_index=0, attempt=1)
    return stage_config(run.replace(status=None), job)


def _of_manifest(run: DistillationRun) -> list[Finding]:
    """Why no Job could be made of it. What image the operator fills in is not known here, unless it is given."""
    image = run.spec.trainer.image
    found = []
    if image is None:
        words = "spec.trainer.image is not set, so that the operator must have been started with --trainer-image"
        found.append(Finding(check="manifest", verdict="warning", message=words))
        run = run.replace(spec=run.spec.replace(trainer=run.spec.trainer.replace(image=ANY_IMAGE)))
    wrong = int(ExitCode.USER_ERROR)
    found += [Finding(check="manifest", verdict="failed", message=said, exit_code=wrong) for said in problems(run)]
    return found


def _in_place_of(manifest: DistillationRun, chosen: str) -> list[Finding]:
    """Whoever has a bucket in mind must not take a folder's word for it."""
    own = manifest.spec.storage
    if own is None or own.uri == chosen:
        return []
    words = f"as comd run has it: {chosen} in place of {own.uri}; --kubernetes looks at that, as pods would"
    return [Finding(check="manifest", verdict="ok", message=words)]
