"""GitOps tools as the API server knows them: how they render and apply, under which name, and what they then call a difference."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.api.simulator import SCHEDULER
from tests.api.world import World

EXAMPLES = Path(__file__).parents[2] / "examples" / "gitops"
OVERLAYS = sorted(folder.name for folder in (EXAMPLES / "overlays").iterdir())


@dataclass(frozen=True)
class Tool:
    name: str
    apply: tuple[str, ...]
    """Options of `kubectl apply` and `kubectl diff`."""
    manager: str

    async def sync(self, world: World, *documents: dict[str, Any]) -> None:
        await world.kubectl("apply", *self.apply, "-f", "-", input=_text(documents))

    async def difference(self, world: World, *documents: dict[str, Any]) -> str:
        return await world.kubectl("diff", *self.apply, "-f", "-", input=_text(documents))


def _server_side(name: str, manager: str) -> Tool:
    return Tool(name, ("--server-side", "--force-conflicts", f"--field-manager={manager}"), manager)


FLUX = _server_side("flux", "kustomize-controller")
ARGO_CD = _server_side("argo-cd", "argocd-controller")
CLIENT = Tool("client-side", (), "kubectl-client-side-apply")
TOOLS = [FLUX, ARGO_CD, CLIENT]


async def rendered(world: World, overlay: str) -> list[dict[str, Any]]:
    """What the API server is given for an overlay."""
    text = await world.kubectl("kustomize", str(EXAMPLES / "overlays" / overlay))
    return list(yaml.safe_load_all(text))


async def simulated(world: World, overlay: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run and schedule of an overlay, for simulated nodes."""
    run, schedule = await rendered(world, overlay)
    for spec in (run["spec"], schedule["spec"]["runTemplate"]["spec"]):
        spec["trainer"]["podTemplate"] = {"spec": {"schedulerName": SCHEDULER}}
    return run, schedule


async def live(world: World, document: dict[str, Any]) -> dict[str, Any]:
    """As `kubectl get --show-managed-fields` has it."""
    kind = f"{document['kind'].lower()}.comd.dev"
    found: dict[str, Any] = json.loads(
        await world.kubectl("get", kind, document["metadata"]["name"], "--show-managed-fields", "-o", "json")
    )
    return found


def parts(found: dict[str, Any], manager: str) -> list[tuple[str | None, set[str]]]:
    """Where a manager has written: the subresource, and the fields on top."""
    entries = [entry for entry in found["metadata"]["managedFields"] if entry["manager"] == manager]
    return [(entry.get("subresource"), {key.removeprefix("f:") for key in entry["fieldsV1"]}) for entry in entries]


def _text(documents: tuple[dict[str, Any], ...]) -> str:
    return "\n---\n".join(json.dumps(document) for document in documents)
