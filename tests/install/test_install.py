"""From a cluster without comd to a finished run and back: the image as it is built, the chart as it is, pods on real nodes, all of them
in namespaces with restricted pod security.

For the whole cluster with the quick start's manifest, which goes on while the operator is replaced under it; and for one namespace, by
somebody who has no right beyond namespaces, with a run of seconds.
"""

from pathlib import Path

import pytest

from tests.api.test_rights import RBAC
from tests.chart import installer
from tests.chart.helm import FULLNAME
from tests.chart.test_install import CRD_NAME, CRDS, changed_chart, is_there
from tests.cluster.upload import upload
from tests.install.conftest import Place
from tests.install.release import Release, allowed, must_have_run_once, scraped_trainer
from tests.nodes import digits
from tests.nodes.site import Run
from tests.nodes.world import one_round, upload_inputs

pytestmark = pytest.mark.timeout(3600)


def test_for_the_whole_cluster(place: Place, tmp_path: Path) -> None:
    cluster, site = place.cluster, place.site
    upload(cluster.s3, digits.prepare(), bucket="comd", prefix="digits/inputs", wanted=digits.is_read)
    release = Release(place, site.namespace("system", secret=False), {}, kubeconfig=cluster.kubeconfig, folder=tmp_path)
    release.install()
    release.test()
    release.until_one_leads()

    run = Run(site, site.namespace("digits"), "digits")
    run.kubectl("apply", "-f", str(digits.EXAMPLE / "run.yaml"))
    assert scraped_trainer(run)["comd_stage_start_time_seconds"] > 0
    run.until(lambda status: len(status.get("stages", [])) > 1)
    before, jobs = release.pods(), {job["metadata"]["uid"] for job in run.job_objects()}

    release.upgrade("--set=logLevel=debug", chart=changed_chart(tmp_path))
    assert not before.keys() & release.pods().keys(), "the Deployment was rolled"
    release.until_one_leads()
    assert "SEED" in run.kubectl("get", "drun"), "the custom resource was carried"
    assert jobs <= {job["metadata"]["uid"] for job in run.job_objects()}

    run.kubectl("wait", "drun/digits", "--for=condition=Succeeded", "--timeout=3000s")
    must_have_run_once(run.status())
    release.uninstall()
    assert not is_there(cluster, f"deployment/{FULLNAME}", "-n", release.namespace)
    assert not is_there(cluster, f"clusterrole/{FULLNAME}")
    assert is_there(cluster, CRD_NAME)
    assert run.status()["phase"] == "Succeeded"
    cluster.kubectl("delete", "namespace", run.namespace, release.namespace, "--wait=false")


def test_for_one_namespace_by_one_of_its_own(place: Place, tmp_path: Path) -> None:
    cluster, site = place.cluster, place.site
    for path in (CRDS, RBAC):
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))
    cluster.kubectl("wait", "--for=condition=Established", CRD_NAME, "--timeout=30s")
    upload_inputs(cluster, tmp_path / "inputs")
    namespace, system = site.namespace("team"), site.namespace("system", secret=False)
    someone = installer.kubeconfig(cluster, namespace=system, others=[namespace])
    for verb, resource in (("create", "customresourcedefinitions"), ("create", "clusterroles"), ("list", "pods")):
        assert not allowed(place, someone, verb, resource)

    release = Release(place, system, {"watchNamespaces": [namespace]}, kubeconfig=someone, folder=tmp_path)
    release.install()
    release.test()
    assert not is_there(cluster, f"clusterrole/{FULLNAME}")
    run = site.apply(one_round(), namespace)
    assert scraped_trainer(run)["comd_stage_start_time_seconds"] > 0
    before, jobs = release.pods(), {job["metadata"]["uid"] for job in run.job_objects()}
    release.upgrade("--set=replicas=1")
    assert len(release.pods()) == 1
    assert before.keys() >= release.pods().keys(), "only fewer of them"
    assert jobs <= {job["metadata"]["uid"] for job in run.job_objects()}
    run.kubectl("wait", f"drun/{run.name}", "--for=condition=Succeeded", "--timeout=1200s")
    must_have_run_once(run.status())
    assert release.leaders() == [1]

    release.uninstall()
    for home in (namespace, system):
        assert not is_there(cluster, f"role/{FULLNAME}", "-n", home)
    assert is_there(cluster, CRD_NAME)
    assert run.status()["phase"] == "Succeeded"
    cluster.kubectl("delete", "namespace", namespace, system, "--wait=false")
