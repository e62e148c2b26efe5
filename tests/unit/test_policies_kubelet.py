"""What a container waits for, in few words."""

import pytest

from comd_operator.policies.kubelet import waiting_words

IMAGE = "registry.example.com/comd/trainer:0.1.0"
PULL = f'Back-off pulling image "{IMAGE}": ErrImagePull: '
UNPACK = f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": '


@pytest.mark.parametrize(
    ("reason", "message", "words"),
    [
        ("ImagePullBackOff", f"{PULL}{UNPACK}{IMAGE}: not found", f"{IMAGE}: not found"),
        ("ImagePullBackOff", f"{PULL}rpc error: code = NotFound desc = {UNPACK}{IMAGE}: not found", f"{IMAGE}: not found"),
        ("ErrImagePull", f"{UNPACK}{IMAGE}: not found", f"{IMAGE}: not found"),
        (
            "ImagePullBackOff",
            f'{PULL}{UNPACK}failed to do request: Head "https://registry.example.com/v2/comd/manifests/0": dial tcp 10.0.0.1:443: '
            "connect: connection refused",
            f"{IMAGE}: dial tcp 10.0.0.1:443: connect: connection refused",
        ),
        (
            "ImagePullBackOff",
            f"{PULL}{UNPACK}pull access denied, repository does not exist or may require authorization",
            f"{IMAGE}: pull access denied, repository does not exist or may require authorization",
        ),
        (
            "ImagePullBackOff",
            'Back-off pulling image "python:3": ErrImagePull: failed to pull and unpack image "docker.io/library/python:3": '
            'failed to resolve reference "docker.io/library/python:3": docker.io/library/python:3: not found',
            "python:3: not found",
        ),
        (
            "ImagePullBackOff",
            'Back-off pulling image "x": ErrImagePull: failed to pull image: context deadline exceeded',
            "x: context deadline exceeded",
        ),
        # Nothing to be made shorter, or nothing that is known.
        ("ImagePullBackOff", 'Back-off pulling image "x"', 'Back-off pulling image "x"'),
        ("ImagePullBackOff", "", ""),
        ("InvalidImageName", 'Failed to apply default image tag "x:y:z"', 'Failed to apply default image tag "x:y:z"'),
        ("CreateContainerConfigError", 'secret "s3" not found', 'secret "s3" not found'),
    ],
)  # fmt: skip
def test_waiting_words(reason: str, message: str, words: str) -> None:
    assert waiting_words(reason, message) == f"{reason}: {words}"
