"""docs/storage.md says what the code asks for: fields, rights, policies, manifests."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from comd_api.run import S3Options, Storage
from comd_trainer.store.s3_errors import KMS_RIGHTS, RIGHTS
from comd_trainer.store.s3_rights import DEEDS
from tests.s3.policy import bucket_policy, policies

TEXT = (Path(__file__).parents[2] / "docs/storage.md").read_text(encoding="utf-8")
MANIFESTS = [
    document
    for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    for document in yaml.safe_load_all(block)
    if document["kind"] == "DistillationRun"
]


def section(title: str) -> str:
    found: str = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return found


def rows(text: str) -> list[list[str]]:
    """Of the first table."""
    table = re.search(r"\| --- .*\n((?:\|.*\n)+)", text)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def actions(policy: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for statement in policy["Statement"]:
        asked = statement["Action"]
        found |= {asked} if isinstance(asked, str) else set(asked)
    return found


def test_every_field_and_no_other() -> None:
    fields = [field.alias for field in S3Options.model_fields.values()]
    assert [cells[0].strip("`") for cells in rows(section("Where artifacts lie"))] == fields


def test_each_request_and_its_right() -> None:
    told = {
        request: right.strip("`")
        for requests, right in rows(section("What must be allowed"))
        for request in requests.split(", ")
    }
    assert told == RIGHTS


def test_the_bucket_s_policy_allows_what_is_needed_and_no_more() -> None:
    assert actions(bucket_policy()) == set(RIGHTS.values())
    assert set(DEEDS) <= set(RIGHTS.values())
    lists, writes = bucket_policy()["Statement"]
    assert lists["Action"] == "s3:ListBucket"
    assert lists["Condition"]["StringLike"]["s3:prefix"] == "distillation/*"
    assert writes["Resource"] == f"{lists['Resource']}/distillation/*"


def test_the_key_s_policy_allows_what_is_needed_and_no_more() -> None:
    assert actions(policies()["EncryptAndDecrypt"]) == set(KMS_RIGHTS)


@pytest.mark.parametrize("document", MANIFESTS, ids=lambda document: json.dumps(document["spec"]["storage"]["s3"])[:40])
def test_its_manifests_are_taken(document: dict[str, Any]) -> None:
    storage = Storage.model_validate(document["spec"]["storage"], by_alias=True, by_name=False)
    assert storage.uri == "s3://my-bucket/distillation"
