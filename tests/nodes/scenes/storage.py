"""Storage that can't be used, as the kubelet, the store and the trainer have it: each in the run's own condition."""

import json
from typing import Any

from comd_operator.policies.hold import without_next_attempt
from tests.nodes.scenes import Scene
from tests.nodes.scenes.ends import must_have_failed
from tests.nodes.site import Run, Site, condition
from tests.nodes.world import BUCKET, one_round


def put(site: Site, namespace: str, kind: str, name: str, **data: str) -> None:
    """A Secret, or a ConfigMap."""
    values = {"stringData" if kind == "Secret" else "data": data}
    site.cluster.apply(
        json.dumps({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, **values})
    )


def stalled(run: Run) -> tuple[str, str, str]:
    """Its status, reason, and message without the time of the next attempt."""
    status = run.until(lambda status: condition(status, "Stalled")[0] == "True")
    told, reason, message = condition(status, "Stalled")
    return told, reason, without_next_attempt(message)


def secret_lacks_a_key(site: Site) -> None:
    """The kubelet starts no container; which keys there must be is said with its words. It goes on by itself once they are there."""
    namespace = site.namespace("lacks-a-key", secret=False)
    put(site, namespace, "Secret", "s3", AWS_ACCESS_KEY_ID=site.cluster.s3.access_key)
    run = site.apply(one_round(), namespace)
    assert stalled(run) == (
        "True",
        "CannotStart",
        f"preflight: CreateContainerConfigError: couldn't find key AWS_SECRET_ACCESS_KEY in Secret {namespace}/s3; "
        "spec.storage.s3.secretRef names the Secret s3, which must have the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
        "(of temporary credentials AWS_SESSION_TOKEN too)",
    )
    site.create_secret(namespace)
    status = run.until(lambda status: status["stages"][0].get("phase") == "Succeeded")
    assert status["stages"][0]["failures"] == 0
    run.change(suspend=True)


def secret_is_wrong(site: Site) -> None:
    namespace = site.namespace("wrong-secret", secret=False)
    put(site, namespace, "Secret", "s3", AWS_ACCESS_KEY_ID=site.cluster.s3.access_key, AWS_SECRET_ACCESS_KEY="wrong")
    fails(
        site.apply(one_round(), namespace), f"spec.storage.uri: the S3 credentials are refused for s3://{BUCKET}/tiny"
    )


def secret_ends_in_a_line_s_end(site: Site) -> None:
    """`echo key | kubectl create secret --from-file`."""
    namespace = site.namespace("line-end", secret=False)
    key = site.cluster.s3.access_key
    put(site, namespace, "Secret", "s3", AWS_ACCESS_KEY_ID=f"{key}\n", AWS_SECRET_ACCESS_KEY="x")
    fails(
        site.apply(one_round(), namespace),
        "spec.storage.uri: the variable AWS_ACCESS_KEY_ID holds a blank or the end of a line",
    )


def no_bucket(site: Site) -> None:
    """Each check is a line of the pod's log, also those that could not be made."""
    run = site.apply(one_round(storage={"uri": "s3://no-such-bucket/tiny"}), site.namespace("no-bucket"))
    fails(run, "spec.storage.uri: s3://no-such-bucket/tiny names the bucket 'no-such-bucket', which does not exist")
    (pod,) = run.pods()
    said = {line["check"]: line["verdict"] for line in run.log(pod) if "check" in line}
    assert (said["storage"], said["clock"], said["models"], said["scratch"]) == ("failed", "ok", "skipped", "skipped")


def no_certificates(site: Site) -> None:
    namespace = site.namespace("no-certificates")
    put(site, namespace, "ConfigMap", "authorities", **{"other.pem": "x"})
    bundle: dict[str, Any] = {"configMapKeyRef": {"name": "authorities", "key": "ca.crt"}}
    run = site.apply(one_round(storage__s3={"endpoint": "https://127.0.0.1:9", "caBundle": bundle}), namespace)
    message = stalled(run)[2]
    assert "references non-existent config key: ca.crt" in message
    assert "spec.storage.s3.caBundle names the key ca.crt of the ConfigMap authorities, which must hold" in message
    run.change(suspend=True)


def wrong_certificates(site: Site) -> None:
    """They are mounted where the trainer looks."""
    namespace = site.namespace("wrong-certificates")
    put(site, namespace, "Secret", "authorities", **{"ca.crt": "no certificate"})
    bundle: dict[str, Any] = {"secretKeyRef": {"name": "authorities", "key": "ca.crt"}}
    run = site.apply(one_round(storage__s3={"endpoint": "https://127.0.0.1:9", "caBundle": bundle}), namespace)
    fails(run, "spec.storage.s3.caBundle: /etc/comd/s3/ca.crt can't be read as certificates")


def fails(run: Run, sentence: str) -> None:
    run.kubectl("wait", "drun/tiny", "--for=condition=Failed", "--timeout=600s")
    must_have_failed(run, "UserError", sentence)


SCENES: dict[str, Scene] = {
    "lacks-a-key": secret_lacks_a_key,
    "wrong-secret": secret_is_wrong,
    "line-end": secret_ends_in_a_line_s_end,
    "no-bucket": no_bucket,
    "no-certificates": no_certificates,
    "wrong-certificates": wrong_certificates,
}
