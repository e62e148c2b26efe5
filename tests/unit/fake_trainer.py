"""A trainer without models: the command line of `comd-trainer run`, and a script of what to do, for the tests of the local runner.

The script is a JSON file named by FAKE_TRAINER: {"round-1/1": "crash"} does that in stage round-1's attempt 1;
every other attempt ends well.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

ZERO = "sha256:" + "0" * 64


def main() -> int:
    parser = argparse.ArgumentParser()
    for option in ("--config", "--termination-message", "--scratch", "--progress"):
        parser.add_argument(option, type=Path, required=True)
    arguments = parser.parse_args()
    config = json.loads(arguments.config.read_text())
    stage, attempt = config["stage"], config["attempt"]
    script = json.loads(Path(os.environ["FAKE_TRAINER"]).read_text()) if "FAKE_TRAINER" in os.environ else {}
    action = script.get(f"{stage}/{attempt}", "done")
    print(f"stage {stage}, attempt {attempt}: {action}", flush=True)
    with (arguments.scratch / "ran").open("a") as file:
        file.write(f"{stage}/{attempt}/{','.join(config['phases'])}/{os.getpid()}\n")

    def report(**fields: Any) -> None:
        arguments.termination_message.write_text(json.dumps(fields))

    match action:
        case "done":
            report(**good_result(config))
            return 0
        case "crash":
            print("RuntimeError: no luck", flush=True)
            return 1
        case "silent":
            return 0
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang" | "deaf":
            hang(arguments.progress, stage, deaf=action == "deaf", report=report)
            return 75
        case str(code) if code.startswith("exit "):
            return int(code.removeprefix("exit "))
        case str(kind):
            report(exitClass=kind, message=f"because of {kind}")
            return {"UserError": 64, "BadData": 65, "TryAgain": 75}.get(kind, 1)
    return 1


def hang(progress: Path, stage: str, *, deaf: bool, report: Any) -> None:
    """Works until SIGTERM; a deaf one until SIGKILL."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    said = {"stage": stage, "phase": "teach", "done": 3, "total": 10, "unit": "items", "metrics": {"loss": 0.5}}
    progress.write_text(json.dumps(said))
    while not stopped or deaf:
        time.sleep(0.05)
    report(exitClass="TryAgain", message="stopped by request")


def good_result(config: dict[str, Any]) -> dict[str, Any]:
    """What a stage that ends well reports; its student is a folder in the store."""
    stage, store = config["stage"], Path(config["spec"]["storage"]["uri"].removeprefix("file://"))
    result: dict[str, Any] = {
        "exitClass": "Done",
        "phases": [{"name": name, "seconds": 1.5} for name in config["phases"]],
    }
    if stage == "preflight":
        return result
    prefix = store / config["run"] / stage / "tune"
    (prefix / "files").mkdir(parents=True, exist_ok=True)
    (prefix / "files" / "config.json").write_text(json.dumps({"stage": stage}))
    (prefix / "manifest.json").write_text(json.dumps({"kind": "tune", "key": "k", "root": "files", "files": []}))
    result["artifacts"] = [{"name": "student", "uri": f"file://{prefix}", "digest": ZERO}]
    score = {"evaluation": "test", "value": 0.2 * (config.get("round", 0) + 1), "low": 0.1, "high": 0.9, "numItems": 40}
    result["scores"] = [{**score, "role": "student"}, {**score, "role": "teacher", "value": 0.95}]
    if stage.startswith("round"):
        result["counts"] = {"train": 100, "compared": 50, "hard": 20, "easy": 30, "dropped": 0, "teacherAnswers": 7}
    return result


if __name__ == "__main__":
    sys.exit(main())
