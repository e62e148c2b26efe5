"""Checks in order, and what of several problems is said."""

import json

import pytest

from comd_api.doctor import DoctorReport, Finding, worst
from comd_api.exit_codes import BadDataError, ComdError, ExitCode, TryAgainError, UserError
from comd_api.stage import StageResult
from comd_trainer.preflight.findings import MAX_LENGTH, Caution, Checks, Errors, singles_of, together


def fail(error: ComdError) -> str:
    raise error


def run(checks: Checks, *names: str) -> list[tuple[str, str]]:
    """All three kinds of ends, and one that comes after what failed."""
    checks.run("fine", lambda: "all is well")
    checks.run("so so", lambda: Caution("it is late"))
    checks.run("silent", lambda: None)
    checks.run("bad", lambda: fail(UserError("spec.x is wrong")))
    for name in names:
        checks.run(name, lambda: "seen", after=["bad"])
    return [(finding.check, finding.verdict) for finding in checks.findings]


def test_what_fails_hides_only_what_needs_it() -> None:
    checks = Checks()
    assert run(checks, "after it") == [("fine", "ok"), ("so so", "warning"), ("bad", "failed"), ("after it", "skipped")]
    checks.run("after that", lambda: "seen", after=["fine", "after it"])
    checks.run("beside it", lambda: "seen", after=["fine", "silent"])
    assert [finding.verdict for finding in checks.findings[-2:]] == ["skipped", "ok"]
    assert checks.cautions() == ["so so: it is late"]
    assert checks.cautions(but=["so so"]) == []
    with pytest.raises(UserError, match=r"^spec\.x is wrong$"):
        checks.raise_any()


def test_a_failure_that_others_can_do_with() -> None:
    checks = Checks()
    run(checks)
    checks.let_pass("bad")
    checks.run("after it", lambda: "seen", after=["bad"])
    assert checks.findings[-1].verdict == "ok"
    assert len(checks.errors) == 1, "it has failed all the same"


def test_what_is_no_error_of_ours_is_not_swallowed() -> None:
    def broken() -> str:
        raise KeyError("x")

    with pytest.raises(KeyError):
        Checks().run("broken", broken)


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([TryAgainError("a"), UserError("b")], UserError),
        ([TryAgainError("a"), BadDataError("b")], BadDataError),
        ([BadDataError("a"), UserError("b")], UserError),
        ([TryAgainError("a"), TryAgainError("b")], TryAgainError),
        ([TryAgainError("a"), ComdError("b")], ComdError),
    ],
)
def test_several_end_as_the_worst(errors: list[ComdError], kind: type[ComdError]) -> None:
    found = together(errors)
    assert type(found) is kind
    assert str(found) == "2 problems: (1) a; (2) b"
    assert singles_of(found) == errors
    last = UserError("c")
    assert singles_of(together([found, last])) == [*errors, last]


def test_one_is_itself() -> None:
    error = BadDataError("a")
    assert together([error]) is error
    errors = Errors()
    errors.raise_any()
    with errors.kept():
        raise error
    with pytest.raises(BadDataError) as raised:
        errors.raise_any()
    assert raised.value is error


def test_as_many_are_told_as_there_is_room_for() -> None:
    """Whole sentences: a termination message cuts where it must."""
    long = "x" * 200
    text = str(together([UserError(f"{number}{long}") for number in range(9)]))
    assert len(text) <= MAX_LENGTH + 80
    assert text.startswith(f"9 problems: (1) 0{long}; (2) 1{long}; ")
    assert text.endswith(f"{long}; and 5 more, which the log of preflight and comd doctor tell")
    message = StageResult(exit_class="UserError", message=text).to_termination_message()
    assert json.loads(message)["message"] == text


def test_a_report() -> None:
    findings = [
        Finding(check="storage", verdict="ok", message="fine"),
        Finding(check="data", verdict="failed", message="spec.data", exit_code=65),
        Finding(check="models", verdict="failed", message="away", exit_code=75),
    ]
    report = DoctorReport(findings=findings)
    assert report.exit_code == ExitCode.BAD_DATA
    assert report.lines() == ["ok       storage   fine", "failed   data      spec.data", "failed   models    away"]
    assert DoctorReport.model_validate(json.loads(json.dumps(report.to_wire()))) == report


@pytest.mark.parametrize(("codes", "code"), [([], 0), ([0, 0], 0), ([75, 0], 75), ([75, 65], 65), ([65, 64, 75], 64)])
def test_the_worst_of_several_codes(codes: list[int], code: int) -> None:
    assert worst(codes) == code
