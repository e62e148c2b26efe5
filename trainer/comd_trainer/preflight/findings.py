"""Checks one after the other: what each found is kept, and one that fails does not keep those from being asked that can still say
something."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from comd_api.doctor import Finding, worst
from comd_api.exit_codes import BadDataError, ComdError, ExitCode, TryAgainError, UserError

log = logging.getLogger(__name__)

KINDS: dict[int, type[ComdError]] = {
    ExitCode.USER_ERROR: UserError,
    ExitCode.BAD_DATA: BadDataError,
    ExitCode.TRY_AGAIN: TryAgainError,
}

MAX_LENGTH = 900
"""Characters of several problems together: a condition's message has 1,024."""


class Caution(str):
    """What a check says that is content, but for something that should be known."""

    __slots__ = ()


class Errors:
    """What is wrong with several things that are looked at alike. One that fails does not hide the others."""

    def __init__(self) -> None:
        self.found: list[ComdError] = []

    @contextmanager
    def kept(self) -> Iterator[None]:
        try:
            yield
        except ComdError as error:
            self.found.append(error)

    def raise_any(self) -> None:
        if self.found:
            raise together(self.found)


def together(errors: Sequence[ComdError]) -> ComdError:
    """One error that says all of them, and ends a stage as the worst would."""
    singles = [single for error in errors for single in singles_of(error)]
    if len(singles) == 1:
        return singles[0]
    kind = KINDS.get(worst([int(error.exit_code) for error in singles]), ComdError)
    error = kind(_sentences([str(single) for single in singles]))
    error.__cause__ = ExceptionGroup("problems", singles)
    return error


def _sentences(sentences: Sequence[str]) -> str:
    """As many as a termination message has room for, whole ones, and how many are left out."""
    text = f"{len(sentences)} problems: (1) {sentences[0]}"
    for number, sentence in enumerate(sentences[1:], 2):
        longer = f"{text}; ({number}) {sentence}"
        if len(longer) > MAX_LENGTH:
            return f"{text}; and {len(sentences) - number + 1} more, which the log of preflight and comd doctor tell"
        text = longer
    return text


def singles_of(error: ComdError) -> list[ComdError]:
    """What `together` was given; an error of another kind is alone."""
    cause = error.__cause__
    if not isinstance(cause, ExceptionGroup):
        return [error]
    return [single for single in cause.exceptions if isinstance(single, ComdError)]


class Checks:
    """Runs checks in order. `findings` tells of all of them, `errors` what failed."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.errors: list[ComdError] = []
        self._missing: set[str] = set()

    def run(self, check: str, look: Callable[[], str | None], *, after: Collection[str] = ()) -> ComdError | None:
        """Runs a check and says what is wrong. `look` returns what it found, None when there is nothing to say. `after`: checks without
        which nothing can be said; when one of them did not end well, this one is skipped."""
        needed = [name for name in after if name in self._missing]
        if needed:
            self._missing.add(check)
            self._say(
                Finding(
                    check=check, verdict="skipped", message=f"is looked at when this is mended: {', '.join(needed)}"
                )
            )
            return None
        try:
            told = look()
        except ComdError as error:
            self._missing.add(check)
            self.errors.append(error)
            for single in singles_of(error):
                self._say(Finding(check=check, verdict="failed", message=str(single), exit_code=int(single.exit_code)))
            return error
        if told is not None:
            self._say(Finding(check=check, verdict="warning" if isinstance(told, Caution) else "ok", message=str(told)))
        return None

    def let_pass(self, check: str) -> None:
        """Those after it are asked all the same."""
        self._missing.discard(check)

    def _say(self, finding: Finding) -> None:
        self.findings.append(finding)
        level = {"ok": logging.INFO, "skipped": logging.INFO, "warning": logging.WARNING, "failed": logging.ERROR}
        log.log(
            level[finding.verdict],
            "%s: %s: %s",
            finding.check,
            finding.verdict,
            finding.message,
            extra={"check": finding.check, "verdict": finding.verdict},
        )

    def cautions(self, *, but: Collection[str] = ()) -> list[str]:
        """What should be known, of all checks but these."""
        return [
            f"{finding.check}: {finding.message}"
            for finding in self.findings
            if finding.verdict == "warning" and finding.check not in but
        ]

    def told(self, check: str) -> str | None:
        """What a check that is content has said."""
        return next((finding.message for finding in self.findings if finding.check == check), None)

    def raise_any(self) -> None:
        """Errors: what failed, all of it in one."""
        if self.errors:
            raise together(self.errors)
