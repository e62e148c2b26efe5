"""JSON that is nested too deep for anybody's good."""

import re

MOST_LEVELS = 64
"""Further down, nothing that we read has anything."""
CUT = b'"nested too deep"'
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')


def cut(data: bytes) -> bytes:
    """JSON in which whatever lies below that many levels is a text.

    A manifest has fields without a schema, such as a pod's affinity, and the API server takes 10,000 levels there: one object must not
    keep all others of its kind from being read.
    """
    level, kept, start = 0, [], 0
    for token in _TOKENS.finditer(data):
        sign = token.group()
        if sign in (b"{", b"["):
            level += 1
            if level == MOST_LEVELS + 1:
                kept.append(data[start : token.start()])
        elif sign in (b"}", b"]"):
            level -= 1
            if level == MOST_LEVELS:
                kept.append(CUT)
                start = token.end()
    if level <= MOST_LEVELS:
        kept.append(data[start:])
    return b"".join(kept)
