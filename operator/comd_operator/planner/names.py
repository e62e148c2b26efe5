"""Names of Jobs: a function of what they do, so that a create that is repeated meets its first self."""

import hashlib

from comd_api.status import PhaseName

MAX_JOB_NAME = 52
"""Pods add a suffix to their Job's name, and both become labels of at most 63 characters."""


def job_name(*, run: str, stage: str, attempt: int, phase: PhaseName | None) -> str:
    """`<run>-<stage>-a<attempt>`, with `execution: Phase` also `-<phase>`. The `a` keeps `x-pretrain` and `x` with its
    phase `pretrain` apart. A long run name is cut and a hash of the whole put in its place."""
    suffix = f"-{stage}-a{attempt}" + (f"-{phase}" if phase else "")
    if len(run) + len(suffix) <= MAX_JOB_NAME:
        return run + suffix
    mark = hashlib.sha256(run.encode()).hexdigest()[:10]
    kept = run[: MAX_JOB_NAME - len(suffix) - len(mark) - 1].rstrip("-")
    return f"{kept}-{mark}{suffix}"
