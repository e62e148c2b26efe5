"""helm, as the tests call it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from comd_operator.validation.documents import parse_documents
from tests.chart.values_table import CHART

Object = dict[str, Any]
IMAGE = {"image": {"repository": "registry.example.com/comd/operator"}}
"""What every release must say."""
RELEASE, NAMESPACE = "comd", "comd-system"
FULLNAME = "comd-comd-operator"


class HelmError(Exception):
    """What it says."""


class Helm:
    def __init__(self, program: Path, *, home: Path) -> None:
        self._program, self._home = program, home

    def __call__(self, *arguments: str, kubeconfig: Path | None = None, input: str | None = None) -> str:
        own = {f"HELM_{name}_HOME": str(self._home / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
        environment = {**os.environ, **own, **({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {})}
        done = subprocess.run(
            [str(self._program), *arguments], capture_output=True, text=True, env=environment, input=input, check=False
        )
        if done.returncode:
            raise HelmError(f"{done.stderr}{done.stdout}")
        return done.stdout

    def render(
        self,
        values: Object | None = None,
        *arguments: str,
        release: str = RELEASE,
        namespace: str = NAMESPACE,
        chart: Path = CHART,
    ) -> "Rendered":
        given = json.dumps({**IMAGE, **(values or {})})
        text = self("template", release, str(chart), f"--namespace={namespace}", "-f", "-", *arguments, input=given)
        return Rendered(text)

    def notes(self, values: Object) -> str:
        """What is said after an installation. Nothing is installed, and no cluster is asked."""
        given = json.dumps({**IMAGE, **values})
        arguments = ("install", RELEASE, str(CHART), f"--namespace={NAMESPACE}", "-f", "-", "--dry-run=client")
        return self(*arguments, input=given).rpartition("NOTES:")[2]


class Rendered:
    """What a release consists of."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.objects: list[Object] = parse_documents(text, name="helm template")

    def of(self, kind: str) -> list[Object]:
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str, name: str | None = None, *, namespace: str | None = None) -> Object:
        (found,) = (
            document
            for document in self.of(kind)
            if name in (None, document["metadata"]["name"])
            and namespace in (None, document["metadata"].get("namespace"))
        )
        return found

    def pod(self) -> Object:
        """The operator's, as its Deployment has it."""
        template: Object = self.one("Deployment")["spec"]["template"]
        return template

    def environment(self) -> dict[str, str]:
        return environment_of(self.pod()["spec"]["containers"][0])


def environment_of(container: Object) -> dict[str, str]:
    """As the kubelet gives it to the process."""
    return {entry["name"]: entry["value"].replace("$$", "$") for entry in container["env"] if "value" in entry}
