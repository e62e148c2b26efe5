"""The ways in which a stage can end, as the trainer's own exit codes and the kernel have them."""

import json

from tests.nodes.scenes import Scene, compare
from tests.nodes.site import Run, Site, condition
from tests.nodes.undisturbed import undisturbed
from tests.nodes.world import one_round

FORGIVING = {"limit": 3, "backoffSeconds": 0}


def user_error(site: Site) -> None:
    """Exit code 64: what only preflight can see. Its sentence is the condition's, and nothing is tried again."""
    document = one_round(data__seed__instructions="inputs/nope.jsonl", retry=FORGIVING)
    run = site.apply(document, site.namespace("user-error"))
    run.kubectl("wait", "drun/tiny", "--for=condition=Failed", "--timeout=600s")
    sentence = "spec.data.seed.instructions: inputs/nope.jsonl is not there"
    must_have_failed(run, "UserError", sentence)


def bad_data(site: Site) -> None:
    """Exit code 65. The Jobs go when the run's time to live is over, and nothing runs again."""
    document = one_round(data__bank="inputs/empty.jsonl", retry=FORGIVING, ttlSecondsAfterFinished=5)
    run = site.apply(document, site.namespace("bad-data"))
    run.kubectl("wait", "drun/tiny", "--for=condition=Failed", "--timeout=600s")
    must_have_failed(run, "BadData", "spec.data.bank (inputs/empty.jsonl) holds no rows")
    run.kubectl("wait", "job/tiny-preflight-a1", "--for=delete", "--timeout=600s")
    assert run.status()["phase"] == "Failed"
    assert run.jobs() == []


def must_have_failed(run: Run, reason: str, sentence: str) -> None:
    """In preflight, at once, in one pod."""
    status = run.status()
    status_, reason_, message = condition(status, "Failed")
    assert (status_, reason_) == ("True", reason)
    assert message.startswith("preflight: ")
    assert sentence in message
    assert [(stage["name"], stage["attempt"], stage["failures"]) for stage in status["stages"]] == [("preflight", 1, 1)]
    assert (run.jobs(), len(run.pods())) == (["tiny-preflight-a1"], 1)


def store_away(site: Site) -> None:
    """Exit code 75: a store that does not answer yet. It is asked again until it does, and no retry is spent."""
    namespace = site.namespace("store-away")
    address, _, port = site.cluster.s3.endpoint.removeprefix("http://").partition(":")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "store", "namespace": namespace},
        "spec": {"ports": [{"port": int(port)}]},
    }
    site.cluster.apply(json.dumps(service))
    document = one_round(storage__s3={"endpoint": f"http://store.{namespace}.svc:{port}"})
    run = site.apply(document, namespace)
    run.until(lambda status: status.get("stages", [{}])[0].get("exitClass") == "TryAgain")
    behind = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "store", "namespace": namespace, "labels": {"kubernetes.io/service-name": "store"}},
        "addressType": "IPv4",
        "ports": [{"port": int(port)}],
        "endpoints": [{"addresses": [address]}],
    }
    site.cluster.apply(json.dumps(behind))
    status = run.until_phase("Succeeded")
    preflight = status["stages"][0]
    assert preflight["attempt"] >= 2
    assert preflight["failures"] == 0
    compare(run, to=undisturbed(site))


def out_of_memory(site: Site) -> None:
    """A limit that the trainer can't keep: named as such, and each attempt spends a retry."""
    document = one_round(
        trainer__resourcesPerNode={"limits": {"memory": "300Mi"}}, retry={"limit": 1, "backoffSeconds": 1}
    )
    run = site.apply(document, site.namespace("out-of-memory"))
    run.kubectl("wait", "drun/tiny", "--for=condition=Failed", "--timeout=600s")
    status = run.status()
    assert condition(status, "Failed")[:2] == ("True", "OutOfMemory")
    assert "raise trainer.resourcesPerNode.limits.memory" in condition(status, "Failed")[2]
    stage = status["stages"][-1]
    assert (stage["name"], stage["attempt"], stage["failures"]) == ("round-1", 2, 2)
    ends = [pod["status"]["containerStatuses"][0]["state"]["terminated"] for pod in run.pods(stage="round-1")]
    assert [end["reason"] for end in ends] == ["OOMKilled"] * 2


def by_phase(site: Site) -> None:
    """`execution: Phase`: a Job for each, to the same end."""
    run = site.apply(one_round(execution="Phase"), site.namespace("by-phase"))
    run.until_phase("Succeeded")
    assert run.jobs() == sorted(
        [
            "tiny-preflight-a1-preflight",
            *(f"tiny-round-1-a1-{phase}" for phase in ("teach", "tune", "answer", "assess")),
        ]
    )
    compare(run, to=undisturbed(site))


def reused(site: Site) -> None:
    """A run on the content of one that is finished: only preflight is run, which asks for no GPU, and the student is the same one. So it is
    when the run is deleted and applied again, as a GitOps tool may do."""
    whole = undisturbed(site)
    namespace = site.namespace("reused")
    for _ in range(2):
        run = site.apply(one_round(reuse="Always"), namespace)
        status = run.until_phase("Succeeded")
        assert [(stage["name"], stage["phase"]) for stage in status["stages"]] == [
            ("preflight", "Succeeded"),
            ("round-1", "Reused"),
        ]
        assert run.jobs() == ["tiny-preflight-a1"]
        assert status["student"] == whole.status()["student"]
        run.kubectl("delete", "drun", run.name, "--wait")
        run.until_idle()


SCENES: dict[str, Scene] = {
    "by-phase": by_phase,
    "store-away": store_away,
    "out-of-memory": out_of_memory,
    "user-error": user_error,
    "bad-data": bad_data,
    "reused": reused,
}
