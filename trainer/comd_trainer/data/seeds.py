"""Where every random choice comes from: the run's seed and the name of the choice, so that the order in which things
happen, the number of ranks and a restart change nothing."""

import hashlib
import json

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """A seed for one purpose: equal names, equal seed; 31 bits, because every service takes those.

    A hash of all parts (and not `seed + something`), so that neighbouring purposes have nothing in common.
    """
    text = json.dumps([seed, *names], ensure_ascii=False, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def rng(seed: int, *names: str | int) -> np.random.Generator:
    """A generator for one purpose, from a stable hash of `seed` and `names`."""
    text = json.dumps([seed, *names], ensure_ascii=False, separators=(",", ":"))
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")))
