"""What the stage `preflight` and `comd doctor` say of each thing that they look at."""

from typing import Annotated, Literal

from pydantic import Field

from comd_api.base import ApiModel
from comd_api.exit_codes import ExitCode

Verdict = Literal["ok", "warning", "failed", "skipped"]
WORST_FIRST = (ExitCode.USER_ERROR, ExitCode.BAD_DATA, ExitCode.FAILED, ExitCode.TRY_AGAIN)
"""What has to be mended counts before what may get better by itself."""


class Finding(ApiModel):
    check: str
    """What was looked at: `storage`, `models` …"""
    verdict: Verdict
    """`skipped`: nothing can be said of it before another check is content."""
    message: str
    """Of what failed: one sentence that names the field, the value and what would be right."""
    exit_code: Annotated[int, Field(ge=0, le=255)] = int(ExitCode.DONE)
    """That a stage would end with for it."""

    def line(self) -> str:
        return f"{self.verdict:<8} {self.check:<9} {self.message}"


class DoctorReport(ApiModel):
    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        return worst([finding.exit_code for finding in self.findings])

    def lines(self) -> list[str]:
        """For people, one for each finding."""
        return [finding.line() for finding in self.findings]


def worst(codes: list[int]) -> int:
    """The exit code of several ends together."""
    return next((int(code) for code in WORST_FIRST if code in codes), int(ExitCode.DONE))
