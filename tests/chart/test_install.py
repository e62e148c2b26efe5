"""The chart on a real API server: installed, worked with, upgraded, uninstalled; for the whole cluster, and for one namespace by
somebody who has no right beyond namespaces.

There are no nodes, so the pods stay where they are: the operator is a process with the command, the variables and the service
account's token that its Deployment gives it, and so is what `helm test` would start.
"""

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from comd_operator.validation.documents import parse_documents
from tests.api.proxy import Proxy
from tests.api.simulator import STORAGE
from tests.api.test_rights import RBAC, allowed, asked
from tests.api.world import World, make_manifest, opened
from tests.chart import installer, tools
from tests.chart.helm import FULLNAME, IMAGE, RELEASE, Helm, Object, environment_of
from tests.chart.schemas import monitoring_crds
from tests.chart.values_table import CHART
from tests.cluster.cluster import Cluster
from tests.cluster.processes import ClusterError

CRDS = CHART.parents[1] / "crds"
CRD_NAME = "crd/distillationruns.comd.dev"
PORT = 18_090
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
VALUES: Object = {
    **IMAGE,
    "port": PORT,
    "leaseSeconds": 3,
    "defaults": {
        "trainerImage": "localhost/comd-trainer:test",
        "storage": {"uri": STORAGE},
        "tolerations": [TOLERATION],
    },
}


class Release:
    """One in a namespace of its own, as whoever has the kubeconfig."""

    def __init__(self, helm: Helm, cluster: Cluster, *, namespace: str, kubeconfig: Path, values: Object) -> None:
        self._helm, self._cluster, self._kubeconfig = helm, cluster, kubeconfig
        self.namespace, self.values = namespace, values

    async def __call__(self, *arguments: str) -> str:
        command = (*arguments, f"--namespace={self.namespace}")
        return await asyncio.to_thread(self._helm, *command, kubeconfig=self._kubeconfig)

    async def put(self, *arguments: str, chart: Path = CHART) -> str:
        """Installs it, or upgrades what is installed."""
        values = self._kubeconfig.with_name(f"{self.namespace}.json")
        values.write_text(json.dumps(self.values))
        return await self("upgrade", "--install", RELEASE, str(chart), f"--values={values}", *arguments)

    async def container(self, kind: str) -> Object:
        """Of the Deployment, as the API server has it; of the pod of helm test, as helm keeps it."""
        if kind == "Deployment":
            text = await asyncio.to_thread(
                self._cluster.kubectl, "-n", self.namespace, "get", f"deployment/{FULLNAME}", "-o", "yaml"
            )
            (deployment,) = parse_documents(text, name=kind)
            spec = deployment["spec"]["template"]["spec"]
        else:
            (pod,) = parse_documents(await self("get", "hooks", RELEASE), name=kind)
            spec = pod["spec"]
        assert spec["serviceAccountName"] == FULLNAME
        (container,) = spec["containers"]
        return dict(container)


async def start(container: Object, proxy: Proxy, *, log: Path) -> asyncio.subprocess.Process:
    """What a container runs, with its variables and no other of ours but the way to the API server."""
    told: list[str] = [*container["command"], *container.get("args", [])]
    assert told[0] == "comd"
    arguments = [f"--url=http://127.0.0.1:{PORT}" if part.startswith("--url=") else part for part in told[1:]]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COMD_OPERATOR_")}
    environment = {**inherited, **environment_of(container), "COMD_OPERATOR_CONTEXT": proxy.context}
    with log.open("ab") as file:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "comd_operator", *arguments, env=environment, stdout=file, stderr=file
        )


@asynccontextmanager
async def working(container: Object, proxy: Proxy, *, log: Path) -> AsyncIterator[None]:
    process = await start(container, proxy, log=log)
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        code = await asyncio.wait_for(process.wait(), timeout=30)
    assert code == 0, log.read_text()


async def prove(world: World, release: Release) -> None:
    """A run to its end, with the rights of the release's service account; nothing is refused, nothing else is asked for."""
    token = await asyncio.to_thread(world.cluster.kubectl, "-n", release.namespace, "create", "token", FULLNAME)
    log = world.kubeconfig.with_name(f"{release.namespace}.log")
    async with world.proxied(token=token.strip()) as proxy, world.simulated():
        async with working(await release.container("Deployment"), proxy, log=log):
            await world.apply(make_manifest(rounds__count=1, storage=None))
            await world.until_phase("Succeeded")
            test = await start(await release.container("Pod"), proxy, log=log)
            assert await asyncio.wait_for(test.wait(), timeout=90) == 0, log.read_text()
        pod = world.job("tiny-round-1-a1").object["spec"]["template"]["spec"]
        assert TOLERATION in pod["tolerations"]
        # What other tests have left behind, in namespaces that are going and take nothing any more, is nobody's fault here.
        answers = [(call, code) for call, code in proxy.answers if _is_of(world, call.path)]
        refused = [(call.what, code) for call, code in answers if code in (401, 403)]
        assert refused == [], log.read_text()
        assert asked(proxy) <= allowed()
        written = {call.path.split("/namespaces/")[1].split("/")[0] for call in proxy.calls if call.writes}
        assert {world.namespace, release.namespace} <= written
        assert written == {world.namespace, release.namespace} or "watchNamespaces" not in release.values


def _is_of(world: World, path: str) -> bool:
    """Of its namespaces, whose names begin alike, or of none."""
    return "/namespaces/" not in path or world.namespace in path


def changed_chart(folder: Path) -> Path:
    """The next version: its custom resource has one more column."""
    chart = folder / "next"
    shutil.copytree(CHART, chart)
    definition = chart / "files" / "crds" / "distillationruns.yaml"
    columns = "    additionalPrinterColumns:\n"
    text = definition.read_text()
    assert columns in text
    definition.write_text(
        text.replace(columns, f"{columns}    - name: Seed\n      type: integer\n      jsonPath: .spec.seed\n")
    )
    return chart


async def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < end, f"not so after 30 s: {what}"
        await asyncio.sleep(0.2)


def is_there(cluster: Cluster, *arguments: str) -> bool:
    try:
        cluster.kubectl("get", *arguments)
    except ClusterError as error:
        if "not found" not in str(error).lower():
            raise
        return False
    return True


def may(cluster: Cluster, namespace: str, user: str, verb: str) -> bool:
    asks = ("auth", "can-i", verb, "distillationruns.comd.dev", f"--namespace={namespace}", f"--as={user}")
    return cluster.kubectl(*asks, check=False).startswith("yes")


def play(cluster: Cluster, folder: Path, scene: Callable[[Callable[[], Any], str], Any]) -> None:
    """A scene in two namespaces: one for runs, whose World is opened when the custom resource is there, and one for the release."""
    kubeconfig = folder / "kubeconfig"
    shutil.copy(cluster.kubeconfig, kubeconfig)

    async def main() -> None:
        name = f"chart-{os.urandom(3).hex()}"
        os.environ["KUBECONFIG"] = str(kubeconfig)
        cluster.kubectl("create", "namespace", f"{name}-system")
        await scene(lambda: opened(cluster, kubeconfig=kubeconfig, namespace=name), f"{name}-system")

    before = os.environ["KUBECONFIG"]
    try:
        asyncio.run(main())
    finally:
        os.environ["KUBECONFIG"] = before


def test_for_the_whole_cluster(control_plane: Cluster, helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With everything that the Prometheus operator knows, so that the API server sees that too. The custom resource may be there
    already, from other tests; it is taken over then."""
    folder = tmp_path_factory.mktemp("everywhere")
    kubectl = control_plane.kubectl
    for path in monitoring_crds(tools.source(*tools.MONITORING)):
        kubectl("apply", "--server-side", "-f", str(path))
    kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    values = {**VALUES, "monitoring": {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}}

    async def scene(open_world: Callable[[], Any], namespace: str) -> None:
        kubeconfig = folder / "kubeconfig"
        release = Release(helm, control_plane, namespace=namespace, kubeconfig=kubeconfig, values=values)
        await release.put("--take-ownership")
        kubectl("wait", "--for=condition=Established", CRD_NAME, "--timeout=30s")
        async with open_world() as world:
            await live_on(world, release)

    async def live_on(world: World, release: Release) -> None:
        await prove(world, release)
        for person in ("edit", "view"):
            kubectl(
                "-n", world.namespace, "create", "rolebinding", person, f"--clusterrole={person}", f"--user={person}"
            )
        await until(lambda: may(control_plane, world.namespace, "edit", "create"), "who may edit may make runs")
        await until(lambda: may(control_plane, world.namespace, "view", "list"), "who may view may see them")
        assert not may(control_plane, world.namespace, "view", "create")

        await release.put(chart=changed_chart(folder))
        await until(lambda: "SEED" in kubectl("-n", world.namespace, "get", "drun"), "the new column is shown")
        assert (await world.status())["phase"] == "Succeeded"

        await release("uninstall", RELEASE)
        assert not is_there(control_plane, f"clusterrole/{FULLNAME}")
        assert not is_there(control_plane, f"deployment/{FULLNAME}", "-n", release.namespace)
        assert is_there(control_plane, CRD_NAME)
        assert (await world.status())["phase"] == "Succeeded"

    play(control_plane, folder, scene)


def test_for_one_namespace_by_one_of_its_own(
    control_plane: Cluster, helm: Helm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whoever installs it is admin of both namespaces and has there what the operator is given, and no right to anything of the
    cluster's own. The custom resource is the administrator's."""
    kubectl = control_plane.kubectl
    for path in (CRDS, RBAC):
        kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))
    kubectl("wait", "--for=condition=Established", CRD_NAME, "--timeout=30s")

    async def scene(open_world: Callable[[], Any], namespace: str) -> None:
        async with open_world() as world:
            await live(world, namespace)

    async def live(world: World, namespace: str) -> None:
        someone = installer.kubeconfig(control_plane, namespace=namespace, others=[world.namespace])
        values = {**VALUES, "watchNamespaces": [world.namespace]}
        release = Release(helm, control_plane, namespace=namespace, kubeconfig=someone, values=values)
        await release.put()
        await prove(world, release)
        assert not is_there(control_plane, f"clusterrole/{FULLNAME}")

        await release.put("--set=replicas=1")
        assert not is_there(control_plane, f"pdb/{FULLNAME}", "-n", namespace)

        await release("uninstall", RELEASE)
        for place in (namespace, world.namespace):
            assert not is_there(control_plane, f"role/{FULLNAME}", "-n", place)
        assert (await world.status())["phase"] == "Succeeded"

    play(control_plane, tmp_path_factory.mktemp("somewhere"), scene)
