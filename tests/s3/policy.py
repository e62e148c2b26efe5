"""The policies of docs/storage.md, as they stand there."""

import json
import re
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[2] / "docs" / "storage.md"


def policies() -> dict[str, dict[str, Any]]:
    """By the `Sid` of the first statement; that of the trust policy has none."""
    blocks = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    found = [json.loads(block) for block in blocks]
    return {policy["Statement"][0].get("Sid", ""): policy for policy in found}


def bucket_policy() -> dict[str, Any]:
    return policies()["List"]


def for_user(user: str, *, bucket: str, prefix: str) -> str:
    """The bucket's policy as JSON, with another user, bucket and prefix, and nothing else changed."""
    text = json.dumps(bucket_policy())
    for there, here in (
        ("arn:aws:iam::111122223333:role/comd", user),
        ("my-bucket", bucket),
        ("distillation/", f"{prefix}/"),
    ):
        assert there in text
        text = text.replace(there, here)
    return text
