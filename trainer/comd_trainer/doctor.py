"""`comd-trainer doctor`: what the stage `preflight` would find, here and now. Nothing that it makes stays."""

import os
import tempfile
from pathlib import Path

from comd_api.doctor import DoctorReport, Finding
from comd_api.exit_codes import ExitCode
from comd_api.profile import resolve
from comd_api.stage import StageConfig
from comd_trainer.preflight.examine import Examination
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import open_store

ATTEMPTS = "2"
"""Tries of a request (AWS_MAX_ATTEMPTS): a person waits, and can ask again."""
NO_STORAGE = "spec.storage is not set: give storage.uri, as s3://bucket/prefix or file:///folder, in the manifest or by --storage"


def diagnose(config: StageConfig, *, scratch: Path | None) -> DoctorReport:
    """Looks at everything that `preflight` looks at. `scratch`: the folder that stages would use here; None where they run elsewhere."""
    storage = config.spec.storage
    if storage is None:
        finding = Finding(check="storage", verdict="failed", message=NO_STORAGE, exit_code=int(ExitCode.USER_ERROR))
        return DoctorReport(findings=[finding])
    os.environ.setdefault("AWS_MAX_ATTEMPTS", ATTEMPTS)
    config = config.replace(spec=resolve(config.spec))
    store = open_store(storage.uri, storage.s3)
    with tempfile.TemporaryDirectory(prefix="comd-doctor-") as folder:
        work = Path(folder)
        sources = Sources(storage, store, work / "cache")
        seen = Examination(config, store=store, sources=sources, work=work, scratch_folder=scratch)
        seen.run()
    return DoctorReport(findings=seen.checks.findings)
