"""What is wrong with a schedule's manifest, before anything is applied; tests/api asks the API server the same table."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from comd_api.exit_codes import ComdError, ExitCode
from comd_api.schedule import DistillationSchedule
from comd_operator.cli.main import main
from comd_operator.cli.trigger import trigger
from comd_operator.validation import check_document
from tests.unit.fake_api import FakeApi, refusal
from tests.unit.schedule_examples import GOOD, ONLY_TEXT, REFUSED
from tests.unit.schedules import schedule_manifest

PATH = "/apis/comd.dev/v1alpha1/namespaces/team/distillationschedules/nightly"
RUNS = "/apis/comd.dev/v1alpha1/namespaces/team/distillationruns"


@pytest.mark.parametrize("spec", GOOD, ids=str)
def test_what_is_right(spec: dict[str, Any]) -> None:
    schedule, problems = check_document(schedule_manifest(**spec))
    assert problems == []
    assert isinstance(schedule, DistillationSchedule)


@pytest.mark.parametrize(("document", "words"), [*REFUSED, *ONLY_TEXT])
def test_what_is_wrong(document: dict[str, Any], words: str) -> None:
    schedule, problems = check_document(document)
    assert schedule is None
    assert any(words in problem for problem in problems), problems


def write(folder: Path, **spec: Any) -> Path:
    path = folder / "schedule.yaml"
    path.write_text(yaml.safe_dump(schedule_manifest(**spec)))
    return path


def test_validate_and_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, schedules=["30 2 * * *"], timeZone="America/Los_Angeles", suspend=True)
    assert main(["validate", str(path)]) == ExitCode.DONE
    assert capsys.readouterr().out == f"{path}: nightly valid\n"
    assert main(["plan", "-f", str(path)]) == ExitCode.DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "nightly: 30 2 * * * in America/Los_Angeles, concurrencyPolicy Allow; suspended, so that none is started"
    )
    assert [line.split()[2] for line in lines[1:6]] == ["02:30"] * 5
    assert lines[6] == "each run:"
    assert "preflight" in lines[8]


def test_the_objects_of_the_next_slot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path, template={"storage": {"uri": "s3://bucket/x"}}, startFrom="LastSuccessful", skipIfUnchanged=True
    )
    assert main(["plan", "--kubernetes", "-f", str(path), "--trainer-image=x:1"]) == ExitCode.DONE
    run, job, *_ = yaml.safe_load_all(capsys.readouterr().out)
    assert (run["kind"], run["metadata"]["labels"]) == ("DistillationRun", {"comd.dev/schedule": "nightly"})
    assert not {"startFrom", "skipIfUnchangedSince"} & run["spec"].keys(), "a file knows of no run before"
    assert job["metadata"]["name"] == f"{run['metadata']['name']}-preflight-a1"
    assert main(["plan", "--kubernetes", "-f", str(path)]) == ExitCode.USER_ERROR
    assert "spec.runTemplate.spec.trainer.image is not set" in capsys.readouterr().err


async def made_by(answers: dict[tuple[str, str], Any]) -> tuple[str, FakeApi]:
    api = FakeApi(answers)
    return await trigger(api, "nightly", namespace="team"), api  # type: ignore[arg-type]


def stored() -> dict[str, Any]:
    document = schedule_manifest()
    document["metadata"] |= {"namespace": "team", "uid": "u", "generation": 3, "managedFields": []}
    return document


def test_trigger() -> None:
    name, api = asyncio.run(made_by({("GET", PATH): stored()}))
    assert [call.verb for call in api.calls] == ["GET", "POST"], "nothing is written to the schedule"
    made = api.calls[1]
    assert (made.path, made.body["metadata"]["name"]) == (RUNS, name)
    assert name.startswith("nightly-manual-")
    assert made.body["metadata"]["ownerReferences"][0]["uid"] == "u"


def test_a_triggered_run_begins_with_the_last_that_succeeded() -> None:
    document = stored()
    document["spec"] |= {"startFrom": "LastSuccessful", "skipIfUnchanged": True}
    document["status"] = {"lastSuccessfulRun": "nightly-29627280"}
    _, api = asyncio.run(made_by({("GET", PATH): document}))
    spec = api.calls[1].body["spec"]
    assert spec["startFrom"] == {"run": "nightly-29627280"}
    assert "skipIfUnchangedSince" not in spec, "somebody wants it, whether anything has changed or not"


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({("GET", PATH): refusal(404, "NotFound", "not found")}, "there is no DistillationSchedule team/nightly"),
        ({("GET", PATH): refusal(403, "Forbidden", "may not get")}, "may not get"),
        ({("GET", PATH): refusal(0, "NoConnection", "refused")}, "the API server can't be asked"),
        ({("GET", PATH): stored(), ("POST", RUNS): refusal(403, "Forbidden", "quota")}, "quota"),
        ({("GET", PATH): {**stored(), "spec": {**stored()["spec"], "schedules": ["0 0 31 2 *"]}}}, "never comes"),
    ],
    ids=["none", "no right", "no server", "refused", "invalid"],
)
def test_trigger_says_why_not(answers: dict[tuple[str, str], Any], words: str) -> None:
    with pytest.raises(ComdError, match=words):
        asyncio.run(made_by(answers))
