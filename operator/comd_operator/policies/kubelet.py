"""What the kubelet says of a container that does not start, made short: it wraps each cause in the next, and names the image in each."""

import re

_PULLS = ("ErrImagePull", "ImagePullBackOff")
_IMAGE = re.compile(r'image "([^"]+)"')
_LAST_CAUSE = re.compile(
    r'.*(?:ErrImagePull|failed to pull(?: and unpack)? image(?: "[^"]*")?|failed to resolve reference "[^"]*"|(?:Head|Get) "[^"]*"): (.+)',
    re.DOTALL,
)


def waiting_words(reason: str, message: str) -> str:
    """`ImagePullBackOff: registry.example.com/comd:1: not found`: of a pull the image and the last cause, all else as it is.

    reason, message: of a container's `state.waiting`.
    """
    image, cause = _IMAGE.search(message), _LAST_CAUSE.match(message)
    if reason not in _PULLS or image is None or cause is None:
        return f"{reason}: {message}"
    name = image.group(1)
    return f"{reason}: {name}: {re.sub(rf'^(?:[^ ]*/)?{re.escape(name)}: ', '', cause.group(1))}"
