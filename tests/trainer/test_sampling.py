"""Nucleus sampling: the set, the distribution and the streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student_trainer.rollout import sampling


def brute_nucleus(probabilities: np.ndarray, top_p: float) -> list[int]:
    """By the definition, one token at a time."""
    order = sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i))
    chosen, mass = [], np.float64(0)
    for token in order:
        chosen.append(token)
        mass += np.float64(probabilities[token])
        if mass >= top_p:
            break
    return chosen


@given(
    st.lists(st.integers(0, 6), min_size=4, max_size=40),
    st.floats(0.01, 1.0),
    st.integers(1, 8),
)
@settings(max_examples=200, deadline=None)
def test_the_nucleus_is_the_smallest_set_with_ties_by_lower_id(
    logits: list[int], top_p: float, first: int
) -> None:
    probabilities = torch.tensor([logits], dtype=torch.float32).softmax(-1)
    expected = brute_nucleus(probabilities[0].numpy(), top_p)
    candidates = [min(first, len(logits)), len(logits)]
    found = []
    for count in candidates:
        ids, _, size, settled = sampling.nucleus(probabilities, top_p, count)
        if bool(settled):
            found.append(ids[0, : int(size)].tolist())
    assert found
    assert all(ids == expected for ids in found)


def test_a_row_that_needs_every_token_settles_with_every_token() -> None:
    flat = torch.full((1, 5000), 1 / 5000)
    counts = (256, 2048, 5000)
    assert [bool(sampling.nucleus(flat, 0.9, c)[3]) for c in counts] == [False, False, True]
    draws = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    tokens = sampling.sample(flat.log().expand(3, -1), draws, 0.9)[0]
    assert tokens.tolist()[0] == 0
    assert abs(tokens.tolist()[1] - 2250) <= 1
    assert abs(tokens.tolist()[2] - 4499) <= 1


def test_without_top_p_draws_follow_the_whole_distribution() -> None:
    probabilities = np.array([0.05, 0.5, 0.15, 0.3])
    log_probs = torch.from_numpy(probabilities).float().log()[None]
    draws = 40_000
    uniforms = torch.from_numpy(sampling.stream("test", 2).random(draws))
    tokens = sampling.sample(log_probs.expand(draws, -1), uniforms, 1.0)[0].numpy()
    counts = np.bincount(tokens, minlength=4)
    chi_square = ((counts - draws * probabilities) ** 2 / (draws * probabilities)).sum()
    assert chi_square < 3 + 5 * np.sqrt(2 * 3)


def test_draws_follow_the_renormalised_nucleus() -> None:
    generator = np.random.default_rng(3)
    logits = torch.from_numpy(generator.normal(size=(1, 30))).float() * 1.5
    log_probs = logits.log_softmax(-1)
    kept = brute_nucleus(log_probs[0].exp().numpy(), 0.8)
    expected = np.zeros(30)
    expected[kept] = log_probs[0].exp().numpy()[kept]
    expected /= expected.sum()
    draws = 40_000
    uniforms = torch.from_numpy(sampling.stream("test", 1).random(draws))
    tokens = sampling.sample(log_probs.expand(draws, -1), uniforms, 0.8)[0].numpy()
    counts = np.bincount(tokens, minlength=30)
    assert counts[expected == 0].sum() == 0
    chi_square = ((counts - draws * expected)[kept] ** 2 / (draws * expected[kept])).sum()
    degrees = len(kept) - 1
    # Five standard deviations of the statistic; the draws are the same every time.
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("width", [1, 40, 3_000])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999999])
def test_both_ways_of_drawing_are_the_same_to_the_bit(width: int, top_p: float) -> None:
    draw = torch.Generator().manual_seed(width)
    logits = torch.cat(
        [
            torch.randn(6, width, generator=draw) * scale
            for scale in (0.0, 0.1, 1.0, 4.0, 30.0, 300.0)
        ]
    )
    logits[::2] = logits[::2].round()  # ties
    logits[1::5, width // 2 + 1 :] = -torch.inf
    probabilities = logits.log_softmax(-1).exp()
    for uniform in (0.0, 0.5, 1 - 2**-53, None):
        uniforms = torch.rand(len(logits), generator=draw, dtype=torch.float64)
        if uniform is not None:
            uniforms.fill_(uniform)
        tokens, masses = sampling._by_candidates(probabilities, uniforms, top_p)
        same, its = sampling._by_bound(probabilities.numpy(), uniforms.numpy(), top_p)
        assert tokens.tolist() == same.tolist()
        assert masses.numpy().tobytes() == its.numpy().tobytes()


def test_the_largest_draw_stays_inside_the_nucleus() -> None:
    log_probs = torch.tensor([[0.5, 0.3, 0.2]]).log()
    token = sampling.sample(log_probs, torch.tensor([1 - 2**-53], dtype=torch.float64), 0.7)[0]
    assert token.tolist() == [1]
    assert sampling.sample(log_probs, torch.zeros(1, dtype=torch.float64), 0.7)[0].tolist() == [0]


def test_every_rollout_has_a_stream_of_its_own() -> None:
    streams = {
        tuple(sampling.rollout_uniforms(seed, step, prompt, index, 4))
        for seed in (0, 1)
        for step in (1, 2, 11)
        for prompt in ("a", "b")
        for index in (0, 1, 11)
    }
    assert len(streams) == 36
    long = sampling.rollout_uniforms(0, 1, "a", 0, 9)
    assert (long[:4] == sampling.rollout_uniforms(0, 1, "a", 0, 4)).all()
