"""`make demo`: the whole method on handwritten digits, with plain distillation on the second core, and both in one table."""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from comd_api.exit_codes import ExitCode

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent.parent / "runs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work-dir", type=Path, default=RUNS / "digits", help="folder of the run; a finished one is shown again"
    )
    parser.add_argument("--no-control", action="store_true", help="leave plain distillation out")
    arguments = parser.parse_args()
    started = time.monotonic()
    store = arguments.work_dir / "store"
    say("1. Handwriting, a teacher, and the student's parts (real scans; nothing is downloaded)")
    run("examples/digits/prepare.py", HERE / "prepare.py", "--out", store / "inputs")

    control_dir = arguments.work_dir.with_name(arguments.work_dir.name + "-control")
    control: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: object) -> None:
        """Ctrl-C is for the two runs, which save and end; here it is only waited for them."""
        if control is not None:
            control.send_signal(number)

    signal.signal(signal.SIGINT, pass_on)
    if not arguments.no_control:
        control = start_control(control_dir, store)
    say("2. comd run examples/digits/run.yaml: pre-training, then rounds of competition")
    code = subprocess.run(comd(HERE / "run.yaml", arguments.work_dir, store), env=ENVIRONMENT).returncode
    if code != 0:
        if control is not None:
            if code != ExitCode.TRY_AGAIN:
                control.terminate()
            control.wait()
        return code
    if control is not None:
        say(
            "3. Beside plain distillation: the same student, steps and number of teacher answers, instructions drawn at random"
        )
        if control.wait() != 0:
            print((control_dir / "output.txt").read_text(), file=sys.stderr)
            return control.returncode
        compare(status_of(arguments.work_dir), status_of(control_dir))
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    say(
        f"Done in {minutes} min {seconds} s. The student opens in transformers: {relative(arguments.work_dir / 'student')}"
    )
    return 0


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
"""One core for each of the two runs: more threads make models this small slower."""


def comd(manifest: Path, work_dir: Path, store: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "comd_operator", "run", str(manifest)),
        *("--work-dir", str(work_dir), "--storage", store.resolve().as_uri(), *options),
    ]


def start_control(folder: Path, store: Path) -> subprocess.Popen[bytes]:
    """The same manifest but for the augmentor, as a run of its own over the same store."""
    manifest = yaml.safe_load((HERE / "run.yaml").read_text())
    manifest["metadata"]["name"] += "-control"
    manifest["spec"]["augmentor"] = {"type": "Random"}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    with (folder / "output.txt").open("wb") as output:
        command = comd(path, folder, store, "--quiet")
        # In a session of its own, so that the terminal's Ctrl-C reaches it once, through us.
        return subprocess.Popen(command, stdout=output, stderr=output, env=ENVIRONMENT, start_new_session=True)


def run(label: str, script: Path, *arguments: object) -> None:
    code = subprocess.run([sys.executable, str(script), *map(str, arguments)], env=ENVIRONMENT).returncode
    if code != 0:
        raise SystemExit(f"{label} ended with {code}")


def status_of(folder: Path) -> dict[str, Any]:
    status: dict[str, Any] = yaml.safe_load((folder / "status.yaml").read_text())["status"]
    return status


def compare(competition: dict[str, Any], plain: dict[str, Any]) -> None:
    """One table: every evaluation set, then every skill; the pre-trained student, plain, competition, teacher."""
    table = Table(title="Accuracy in % on handwriting that nobody was trained on", title_justify="left")
    for column in ("", "before", "plain", "competition", "gain", "teacher"):
        table.add_column(column, justify="left" if not column else "right")
    first = competition["stages"][1]["scores"]
    for before in [score for score in first if score["role"] == "student"]:
        name = before["evaluation"]
        after = {
            "plain": pick(plain["stages"][-1]["scores"], name, "student"),
            "competition": pick(competition["stages"][-1]["scores"], name, "student"),
            "teacher": pick(first, name, "teacher"),
        }
        table.add_row(
            f"[bold]{name}[/bold]", *cells(before["value"], **{key: score["value"] for key, score in after.items()})
        )
        if name != first[0]["evaluation"]:
            continue
        groups = {
            key: {group["name"]: group["value"] for group in score.get("groups", [])} for key, score in after.items()
        }
        for group in before.get("groups", []):
            row = {key: values[group["name"]] for key, values in groups.items()}
            table.add_row(f"  {group['name']}", *cells(group["value"], **row))
    Console().print(table)


def pick(scores: list[dict[str, Any]], evaluation: str, role: str) -> dict[str, Any]:
    return next(score for score in scores if score["evaluation"] == evaluation and score["role"] == role)


def cells(before: float, *, plain: float, competition: float, teacher: float) -> list[str]:
    gain = 100 * (competition - plain)
    return [
        f"{100 * before:.1f}",
        f"{100 * plain:.1f}",
        f"{100 * competition:.1f}",
        f"{gain:+.1f}",
        f"{100 * teacher:.1f}",
    ]


def say(text: str) -> None:
    Console().print(f"\n[bold]{text}[/bold]", highlight=False)


def relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    raise SystemExit(main())
