"""Sampling that repeats: the noise, the distribution it makes, and top-p."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comd_trainer.generation.sampling import GumbelSampler, gumbel_noise, keep_top_p


def test_a_rows_noise_does_not_depend_on_its_neighbours() -> None:
    alone = [gumbel_noise([seed], 3, 500, device="cpu") for seed in (5, 6, 7)]
    assert torch.equal(gumbel_noise([7, 5, 6], 3, 500, device="cpu"), torch.cat([alone[2], alone[0], alone[1]]))


def test_seeds_and_steps_have_noise_of_their_own() -> None:
    base = gumbel_noise([1], 0, 1000, device="cpu")
    for other in (gumbel_noise([2], 0, 1000, device="cpu"), gumbel_noise([1], 1, 1000, device="cpu")):
        assert abs(torch.corrcoef(torch.cat([base, other]))[0, 1]) < 0.15
        assert not torch.equal(base, other)


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel_noise(range(200), 0, 5000, device="cpu").double()
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.005)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.01)
    assert torch.isfinite(noise).all()
    for x in (-1.0, 0.0, 1.0, 3.0, 6.0):
        assert (noise < x).double().mean().item() == pytest.approx(math.exp(-math.exp(-x)), abs=0.002)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.7)])
def test_samples_follow_the_softmax(temperature: float, top_p: float) -> None:
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.08, 0.02])
    rows = 40_000
    sampler = GumbelSampler(seeds=range(rows), temperature=temperature, top_p=top_p, prompt_length=4)
    drawn = sampler(torch.zeros(rows, 9, dtype=torch.long), probabilities.log().expand(rows, -1)).argmax(dim=-1)
    wanted = (probabilities.log() / temperature).softmax(dim=-1)
    if top_p < 1:
        wanted = torch.tensor([4 / 7, 3 / 7, 0, 0, 0])  # 0.4 + 0.3 are enough
    counts = torch.bincount(drawn, minlength=5)
    assert (counts[wanted == 0] == 0).all()
    kept = wanted > 0
    chi_square = ((counts[kept] - rows * wanted[kept]) ** 2 / (rows * wanted[kept])).sum().item()
    assert chi_square < 23.5, f"{counts.tolist()} against {wanted.tolist()}"  # p = 0.0001 with 4 degrees of freedom


@given(
    logits=st.lists(st.floats(-20, 20), min_size=1, max_size=40),
    top_p=st.floats(0.01, 0.999),
)
def test_top_p_keeps_the_fewest_tokens_that_suffice(logits: list[float], top_p: float) -> None:
    scores = torch.tensor([logits])
    kept = torch.isfinite(keep_top_p(scores, top_p))[0]
    probabilities = scores.softmax(dim=-1)[0].double()
    inside = probabilities[kept]
    assert kept.any()
    assert inside.sum() >= top_p - 1e-5
    assert inside.sum() - inside.min() < top_p + 1e-5, "one token fewer would have done"
    if (~kept).any():
        assert inside.min() >= probabilities[~kept].max()


def test_top_p_of_one_keeps_everything() -> None:
    scores = torch.randn(3, 50)
    assert torch.equal(keep_top_p(scores, 1.0), scores)
