"""Sampling that repeats: a token depends on its own row's seed and step alone, never on the batch, its padding or the
device.

A sample of softmax(x) is the argmax of x plus Gumbel noise, so noise made from (seed, step, token) by a hash turns
greedy search into sampling. torch's own generators draw for a whole batch in one stream, so that a row's luck would
depend on its neighbours.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

MASK = 0xFFFFFFFF


class GumbelSampler(LogitsProcessor):
    """Makes `generate(do_sample=False)` sample: temperature, then top-p, then noise; the argmax is the sample."""

    def __init__(self, *, seeds: Sequence[int], temperature: float, top_p: float, prompt_length: int) -> None:
        assert temperature > 0, "greedy search takes no noise"
        self.seeds, self.temperature, self.top_p, self.prompt_length = tuple(seeds), temperature, top_p, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`input_ids` (rows, length so far), `scores` (rows, vocabulary); returns perturbed scores in float32."""
        step = input_ids.shape[1] - self.prompt_length
        scores = keep_top_p(scores.float() / self.temperature, self.top_p)
        return scores + gumbel_noise(self.seeds, step, scores.shape[1], device=scores.device)


def keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    """Scores (rows, vocabulary) with -inf for all but the likeliest tokens that together have a probability of
    `top_p`."""
    if top_p >= 1.0:
        return scores
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    # A token goes when those before it suffice; the first one always stays.
    enough_before = probabilities.cumsum(dim=-1) - probabilities >= top_p
    enough_before[:, 0] = False
    return scores.masked_fill(enough_before.scatter(1, order, enough_before), float("-inf"))


def gumbel_noise(seeds: Sequence[int], step: int, num_tokens: int, *, device: torch.device | str) -> Tensor:
    """Standard Gumbel noise (len(seeds), num_tokens), float32: row i is a function of (seeds[i], step) alone."""
    keys = torch.tensor([_key(seed, step) for seed in seeds], dtype=torch.int64).to(device)
    tokens = torch.arange(num_tokens, dtype=torch.int64, device=device)
    bits = _mix((tokens * 0x9E3779B1 + keys[:, :1]) & MASK)
    bits = _mix(bits ^ keys[:, 1:])
    uniform = (bits.double() + 0.5) * 2.0**-32
    noise: Tensor = -(-uniform.log()).log()
    return noise.float()


def _key(seed: int, step: int) -> tuple[int, int]:
    """Two words of 32 bits for one row and step."""
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _mix(words: Tensor) -> Tensor:
    """MurmurHash3's finalizer on 32-bit words in int64 (the products wrap, and only their low half is kept)."""
    words = words ^ (words >> 16)
    words = (words * 0x85EBCA6B) & MASK
    words = words ^ (words >> 13)
    words = (words * 0xC2B2AE35) & MASK
    return words ^ (words >> 16)
