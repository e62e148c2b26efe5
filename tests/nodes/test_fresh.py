"""A schedule on a real cluster: each minute a new student from what is new, promoted when it is better, and none where nothing is."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from comd_api import API_VERSION
from tests.cluster.upload import upload
from tests.nodes import digits
from tests.nodes.site import SLOW, Run, Site, condition

BUCKET, PREFIX = "comd", "fresh"
KEPT = 600
"""Seed rows that the first run is given; the second one finds the rest as well."""
PROMOTION = {"evaluation": "balanced", "confidence": 0.9, "guards": [{"evaluation": "natural", "maxDrop": 0.1}]}
ROUNDS = {"count": 1, "threshold": 1.0, "teacherFloor": 7, "hardItemsFloor": 1, "replayFraction": 0.25}


def schedule() -> dict[str, Any]:
    """The quick start's manifest, with one round of few steps: a minute on two cores."""
    spec = yaml.safe_load((digits.EXAMPLE / "run.yaml").read_text())["spec"]
    spec |= {"promotion": PROMOTION, "storage": {"uri": f"s3://{BUCKET}/{PREFIX}"}}
    spec["rounds"] = {**ROUNDS, "assessment": {"sampleSize": 200, "freshItems": 0}}
    spec["training"] |= {"maxSteps": 80, "firstRound": {"learningRate": 0.002, "batchSize": 32, "maxSteps": 80}}
    return {
        "apiVersion": API_VERSION,
        "kind": "DistillationSchedule",
        "metadata": {"name": "fresh"},
        "spec": {
            "schedules": ["* * * * *"],
            "concurrencyPolicy": "Forbid",
            "startFrom": "LastSuccessful",
            "skipIfUnchanged": True,
            "successfulRunsHistoryLimit": 9,
            "runTemplate": {"spec": spec},
        },
    }


class Bucket:
    def __init__(self, site: Site) -> None:
        s3 = site.cluster.s3
        self.client = boto3.client(
            "s3",
            endpoint_url=s3.endpoint,
            region_name="us-east-1",
            aws_access_key_id=s3.access_key,
            aws_secret_access_key=s3.secret_key,
        )

    def put_seed(self, rows: list[str]) -> None:
        self.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/inputs/seed.jsonl", Body="".join(rows).encode())

    def json(self, path: str) -> dict[str, Any]:
        body = self.client.get_object(Bucket=BUCKET, Key=f"{PREFIX}/{path}")["Body"].read()
        found: dict[str, Any] = json.loads(body)
        return found


class Nights:
    """The runs of the schedule, in order."""

    def __init__(self, site: Site, namespace: str) -> None:
        self.site, self.namespace = site, namespace

    def objects(self) -> list[dict[str, Any]]:
        path = f"/apis/{API_VERSION}/namespaces/{self.namespace}/distillationruns"
        found: list[dict[str, Any]] = self.site.api.get(path)["items"]
        return sorted(found, key=lambda run: str(run["metadata"]["name"]))

    def over(self, *, unchanged: bool) -> list[dict[str, Any]]:
        runs = [run for run in self.objects() if run.get("status", {}).get("phase") in ("Succeeded", "Failed")]
        for run in runs:
            assert run["status"]["phase"] == "Succeeded", json.dumps(run["status"], indent=1)
        return [run for run in runs if (condition(run["status"], "Succeeded")[1] == "Unchanged") == unchanged]

    def until(self, count: int, *, unchanged: bool) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 2 * SLOW
        while len(found := self.over(unchanged=unchanged)) < count:
            assert time.monotonic() < deadline, json.dumps([run.get("status") for run in self.objects()], indent=1)
            time.sleep(1)
        return found


def stage(run: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in run["status"]["stages"] if entry["name"] == name)
    return found


def balanced(run: dict[str, Any]) -> float:
    scores = stage(run, "round-1")["scores"]
    return float(
        next(each["value"] for each in scores if (each["evaluation"], each["role"]) == ("balanced", "student"))
    )


@pytest.mark.timeout(3600)
def test_two_students_and_a_quiet_night(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = digits.prepare()
    upload(site.cluster.s3, inputs, bucket=BUCKET, prefix=f"{PREFIX}/inputs", wanted=digits.is_read)
    rows = (inputs / "seed.jsonl").read_text().splitlines(keepends=True)
    assert len(rows) > KEPT
    bucket = Bucket(site)
    bucket.put_seed(rows[:KEPT])
    namespace = site.namespace("fresh")
    nights = Nights(site, namespace)
    file = tmp_path / "schedule.yaml"
    file.write_text(yaml.safe_dump(schedule()))
    site.cluster.kubectl("-n", namespace, "apply", "-f", str(file))

    (first,) = nights.until(1, unchanged=False)
    quiet_before = len(nights.over(unchanged=True))
    bucket.put_seed(rows)
    _, second, *_ = nights.until(2, unchanged=False)
    # A night may have come before the new rows did; the next ones come after all is known.
    nights.until(quiet_before + 2, unchanged=True)
    site.cluster.kubectl(
        "-n", namespace, "patch", "dsched", "fresh", "--type=merge", "-p", '{"spec": {"suspend": true}}'
    )
    made, quiet = nights.over(unchanged=False), nights.over(unchanged=True)
    assert [run["metadata"]["name"] for run in made] == [run["metadata"]["name"] for run in (first, second)]

    must_have_begun_from_scratch(first)
    must_have_learned_what_is_new(first, second, num_new=len(rows) - KEPT)
    must_be_promoted_by_its_scores(bucket, first, second)
    must_have_asked_for_nothing(site, second, quiet[-1])

    status = json.loads(site.cluster.kubectl("-n", namespace, "get", "dsched", "fresh", "-o", "json"))["status"]
    assert status["lastSuccessfulRun"] >= quiet[-1]["metadata"]["name"]
    with capsys.disabled():
        print(f"\n{told(made, quiet)}")


def must_have_begun_from_scratch(first: dict[str, Any]) -> None:
    assert not {"startFrom", "skipIfUnchangedSince"} & first["spec"].keys()
    assert stage(first, "round-1")["counts"]["teacherAnswers"] > 0
    assert stage(first, "promote")["promoted"] is True, "the first of its channel"


def must_have_learned_what_is_new(first: dict[str, Any], second: dict[str, Any], *, num_new: int) -> None:
    """And asked the teacher for nothing else."""
    assert second["spec"]["startFrom"] == {"run": second["spec"]["skipIfUnchangedSince"], "channel": "stable"}
    started = {ref["name"]: ref["digest"] for ref in stage(second, "preflight")["artifacts"]}
    assert started["student"] == first["status"]["student"]["digest"]
    assert [each["name"] for each in stage(second, "pretrain")["phases"]] == ["evaluate"]
    counts = stage(second, "round-1")["counts"]
    assert 0 < counts["teacherAnswers"] <= num_new
    assert counts["train"] <= num_new + num_new // 4 + 1, "what is new, and a replay"
    assert counts["train"] + counts["compared"] - counts["teacherAnswers"] >= 200, "answers of the first run"


def must_be_promoted_by_its_scores(bucket: Bucket, first: dict[str, Any], second: dict[str, Any]) -> None:
    end = stage(second, "promote")
    pointer = bucket.json("channels/stable.json")
    winner = second if end["promoted"] else first
    assert (pointer["uri"], pointer["digest"]) == (
        winner["status"]["student"]["uri"],
        winner["status"]["student"]["digest"],
    )
    assert pointer["run"] == f"{winner['metadata']['namespace']}/{winner['metadata']['name']}"
    assert f"balanced {balanced(second):.3f} against {balanced(first):.3f}" in end["message"]
    assert end["promoted"] or balanced(second) < balanced(first) + 0.1, end["message"]
    assert not end["promoted"] or balanced(second) > balanced(first)


def must_have_asked_for_nothing(site: Site, second: dict[str, Any], quiet: dict[str, Any]) -> None:
    """One pod without GPUs, and the student that there is."""
    assert quiet["spec"]["skipIfUnchangedSince"] >= second["metadata"]["name"]
    assert [entry["name"] for entry in quiet["status"]["stages"]] == ["preflight"]
    assert quiet["status"]["student"] == second["status"]["student"]
    run = Run(site, quiet["metadata"]["namespace"], quiet["metadata"]["name"])
    own = [job for job in run.job_objects() if job["metadata"]["labels"]["comd.dev/run"] == run.name]
    assert [job["metadata"]["labels"]["comd.dev/stage"] for job in own] == ["preflight"]


def told(made: list[dict[str, Any]], quiet: list[dict[str, Any]]) -> str:
    def seconds(run: dict[str, Any]) -> float:
        began, ended = (datetime.fromisoformat(run["status"][name]) for name in ("startTime", "completionTime"))
        return (ended - began).total_seconds()

    lines = [
        f"{run['metadata']['name']}: {seconds(run):.0f} s, balanced {balanced(run):.3f}, "
        f"{stage(run, 'round-1')['counts']['teacherAnswers']} teacher answers, {stage(run, 'promote')['message']}"
        for run in made
    ]
    return "\n".join([*lines, *(f"{run['metadata']['name']}: {seconds(run):.0f} s, unchanged" for run in quiet)])
