"""The quick start's inputs, in the bucket that its manifest names; and what its student is, on disk and in words."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import boto3

from tests import gotools
from tests.cluster.cluster import Cluster
from tests.nodes.site import ROOT

EXAMPLE = ROOT / "examples" / "digits"
INPUTS = ROOT / "runs" / "e2e" / "digits-inputs"
"""Kept from one time to the next; `prepare.py` knows what is complete."""
UNREAD = ("images/dev/", "dev-", "bank-even.jsonl", "prepared.json", ".")
"""What the manifest does not read."""

REFUSE_COMD = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("comd"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
"""


def prepare() -> Path:
    """As the README says; a minute, the first time."""
    with gotools.locked(INPUTS):
        command = [sys.executable, str(EXAMPLE / "prepare.py"), "--out", str(INPUTS)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return INPUTS


def is_read(name: str) -> bool:
    return not name.startswith(UNREAD)


def fetch_artifact(cluster: Cluster, uri: str, folder: Path) -> str:
    """Downloads an artifact by plain S3. Its digest, computed here from its manifest and the bytes of its files."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    s3 = cluster.s3
    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name="us-east-1",
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
    )
    manifest = json.loads(client.get_object(Bucket=bucket, Key=f"{prefix}/manifest.json")["Body"].read())
    content = []
    for entry in manifest["files"]:
        data = client.get_object(Bucket=bucket, Key=f"{prefix}/{manifest['root']}/{entry['path']}")["Body"].read()
        target = folder / entry["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        content.append([entry["path"], len(data), hashlib.sha256(data).hexdigest()])
    return "sha256:" + hashlib.sha256(json.dumps([manifest["kind"], sorted(content)]).encode()).hexdigest()


def ask_as_the_readme_does(student: Path) -> str:
    """The README's own lines, in a process that can't import comd."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    code = next(block for block in blocks if "AutoModelForImageTextToText" in block)
    for there, here in (("runs/digits/student", student), ("runs/digits/store/inputs", INPUTS)):
        assert there in code
        code = code.replace(there, str(here))
    done = subprocess.run([sys.executable, "-c", REFUSE_COMD + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
