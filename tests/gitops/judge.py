"""What GitOps tools make of objects: asks the program in judge/, which Go builds in a quarter of a minute, once a machine."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests import gotools

MODULE = Path(__file__).parent / "judge"


class MissingError(Exception):
    """Why nobody can be asked here, in one line."""


class Answer(NamedTuple):
    result: Any
    error: str | None


def provide(say: Callable[[str], None]) -> Path:
    """Raises MissingError."""
    target = gotools.cache() / gotools.key(sorted(MODULE.iterdir())) / "judge"
    with gotools.locked(target.parent):
        if not target.exists():
            if gotools.go() is None:
                raise MissingError("no tests of what GitOps tools see: no Go to build kstatus and Argo CD's Lua")
            say("building kstatus and Argo CD's Lua")
            try:
                gotools.build(MODULE, ".", target)
            except subprocess.CalledProcessError as error:
                raise MissingError(f"go could not build tests/gitops/judge (exit {error.returncode})") from None
    return target


class Judge:
    def __init__(self, program: Path) -> None:
        self.program = program

    def ask(self, questions: Sequence[dict[str, Any]]) -> list[Answer]:
        """Each {"object": …} or {"object": …, "script": …}."""
        text = "".join(f"{json.dumps(question)}\n" for question in questions)
        done = subprocess.run([self.program], input=text, capture_output=True, text=True, timeout=60, check=True)
        told = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(told) == len(questions)
        return [Answer(result=one.get("result"), error=one.get("error")) for one in told]

    def kstatus(self, wire: dict[str, Any]) -> str:
        """`Current`, `InProgress`, `Failed` …, and never an error."""
        [answer] = self.ask([{"object": wire}])
        assert answer.error is None, answer.error
        return str(answer.result["status"])

    def run(self, script: str, wire: dict[str, Any]) -> Any:
        """What a script in Lua returns, an empty table as a list."""
        [answer] = self.ask([{"object": wire, "script": script}])
        assert answer.error is None, answer.error
        return answer.result
