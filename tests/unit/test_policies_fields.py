"""The kubelet's words, with the field that they are about. They are quoted from Kubernetes 1.34 (pkg/kubelet, pkg/volume)."""

from typing import Any

import pytest

from comd_api.run import Storage
from comd_operator.policies.fields import with_field
from tests.unit.runs import make_run

KEYS = (
    "spec.storage.s3.secretRef names the Secret s3, which must have the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
    "(of temporary credentials AWS_SESSION_TOKEN too)"
)
BY_SECRET = {"secretRef": {"name": "s3"}}
BY_CONFIG_MAP = {"caBundle": {"configMapKeyRef": {"name": "authorities", "key": "own.pem"}}}
BY_TLS_SECRET = {"caBundle": {"secretKeyRef": {"name": "tls", "key": "ca.crt"}}}


@pytest.mark.parametrize(
    ("s3", "words", "added"),
    [
        (BY_SECRET, "CreateContainerConfigError: couldn't find key AWS_ACCESS_KEY_ID in Secret team/s3", KEYS),
        (BY_SECRET, 'CreateContainerConfigError: secret "s3" not found', KEYS),
        (BY_SECRET, 'CreateContainerConfigError: secret "s3-of-others" not found', None),
        (BY_SECRET, "couldn't find key token in Secret team/s3-of-others", None),
        (BY_SECRET, "ImagePullBackOff: no such image", None),
        ({}, 'CreateContainerConfigError: secret "s3" not found', None),
        (
            BY_CONFIG_MAP,
            'MountVolume.SetUp failed for volume "s3-ca-bundle" : configmap references non-existent config key: own.pem',
            "spec.storage.s3.caBundle names the key own.pem of the ConfigMap authorities, which must hold certificates in PEM",
        ),
        (
            BY_TLS_SECRET,
            'MountVolume.SetUp failed for volume "s3-ca-bundle" : secret "tls" not found',
            "spec.storage.s3.caBundle names the key ca.crt of the Secret tls, which must hold certificates in PEM",
        ),
        (BY_CONFIG_MAP, 'MountVolume.SetUp failed for volume "data" : configmap "data" not found', None),
    ],
)
def test_what_spec_storage_names_is_said(s3: dict[str, Any], words: str, added: str | None) -> None:
    spec = make_run().spec
    spec = spec.replace(storage=Storage.model_validate({"uri": "s3://bucket/x", "s3": s3}))
    assert with_field(spec, words) == (f"{words}; {added}" if added else words)


def test_a_run_without_storage_has_no_such_field() -> None:
    spec = make_run().spec.replace(storage=None)
    assert with_field(spec, 'secret "s3" not found') == 'secret "s3" not found'
