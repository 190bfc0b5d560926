"""Exact top-K and tails against a plain sort in numpy and sums in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_proto.rows import WideRows

from teacher_server.engines.torch.supports import (
    BLOCK,
    Supports,
    SupportSpec,
    WideIds,
    compute_supports,
    top_k,
)

INFINITY = float("inf")


def spec(k: int, limit: int, **changes: object) -> SupportSpec:
    values: dict[str, object] = {
        "top_k": k,
        "temperature": 1.0,
        "vocabulary_limit": limit,
        "want_sampled": True,
        "want_log_tail": True,
        "explicit_slots": 0,
    }
    return SupportSpec(**(values | changes))  # type: ignore[arg-type]


def supports(log_probs: torch.Tensor, k: int) -> Supports:
    sampled = torch.zeros(log_probs.shape[0], dtype=torch.int64)
    return compute_supports(log_probs.clone(), spec(k, log_probs.shape[1]), sampled, None)


def expected_ids(values: np.ndarray, k: int, limit: int) -> np.ndarray:
    """A stable sort keeps lower ids first among equals."""
    return np.argsort(-values[:, :limit], axis=1, kind="stable")[:, :k]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.sampled_from([1, 5, 63, 64, 65, 1000, 5000, 20_001]),
    levels=st.sampled_from([1, 2, 7, 100, 1_000_000]),
    data=st.data(),
)
def test_top_k_is_a_stable_sort(
    seed: int, vocabulary: int, levels: int, data: st.DataObject
) -> None:
    """Few levels make ties everywhere, between blocks and at the boundary too."""
    limit = data.draw(st.integers(max(1, vocabulary // 2), vocabulary))
    k = data.draw(st.one_of(st.integers(0, min(limit, 80)), st.just(limit)))
    generator = np.random.default_rng(seed)
    values = -(generator.integers(0, levels, (3, vocabulary)) * (20.0 / levels)).astype(np.float32)
    ids, log_probs = top_k(torch.from_numpy(values), k, limit)
    expected = expected_ids(values, k, limit)
    np.testing.assert_array_equal(ids.numpy(), expected)
    np.testing.assert_array_equal(log_probs.numpy(), np.take_along_axis(values, expected, 1))


@pytest.mark.parametrize("k", [1, 64, 100])
def test_bfloat16_logits_tie_at_the_boundary(k: int) -> None:
    logits = torch.randn(4, 40_000, generator=torch.Generator().manual_seed(0)) * 3
    values = torch.log_softmax(logits.to(torch.bfloat16).float(), -1)
    assert 2 * k * BLOCK < values.shape[1], "the blocked way is the one under test"
    ids, _ = top_k(values, k, values.shape[1])
    np.testing.assert_array_equal(ids.numpy(), expected_ids(values.numpy(), k, values.shape[1]))
    if k > 1:
        best = values.sort(descending=True).values
        assert (best[:, k - 1] == best[:, k]).any(), "no tie at the boundary to test"


@pytest.mark.parametrize("gap", [0.0, 5.0, 20.0, 60.0, 300.0, 3000.0])
def test_the_tail_does_not_cancel(gap: float) -> None:
    """The mass outside shrinks to e^-3000; float64 over the same logits decides."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 2000, generator=generator)
    logits[:, 7] += gap + 5
    logits[:, 1500] += gap + 4
    found = supports(torch.log_softmax(logits, -1), 2)
    exact = logits.double()
    outside = exact.scatter(1, torch.from_numpy(found.rows.support.ids).long(), -INFINITY)
    expected = torch.logsumexp(outside, -1) - torch.logsumexp(exact, -1)
    assert found.rows.log_tail is not None
    assert found.rows.log_tail.valid.all()
    torch.testing.assert_close(
        torch.from_numpy(found.rows.log_tail.values).double(), expected, rtol=1e-6, atol=1e-5
    )


def test_impossible_ids_leave_shorter_supports() -> None:
    logits = torch.full((2, 300), -INFINITY)
    logits[0, [4, 200, 9]] = torch.tensor([1.0, 1.0, 3.0])
    logits[1] = 0.0
    found = supports(torch.log_softmax(logits, -1), 5)
    assert found.finite.all()
    assert found.rows.support.counts.tolist() == [3, 5]
    assert found.rows.support.ids[0].tolist() == [9, 4, 200, -1, -1]
    assert found.rows.support.log_probs[0, 3:].tolist() == [0.0, 0.0]
    assert found.rows.sampled is not None
    assert found.rows.sampled.valid.tolist() == [False, True]
    assert found.rows.sampled is not None
    assert found.rows.sampled.values[0] == 0.0
    assert found.rows.log_tail is not None
    assert found.rows.log_tail.valid.tolist() == [False, True], "nothing is left outside row 0"


@pytest.mark.parametrize("poison", [float("nan"), INFINITY, -INFINITY])
def test_only_the_poisoned_row_is_not_finite(poison: float) -> None:
    logits = torch.randn(4, 500, generator=torch.Generator().manual_seed(2))
    if poison == -INFINITY:
        logits[2] = poison
    else:
        logits[2, 77] = poison
    found = supports(torch.log_softmax(logits, -1), 3)
    assert found.finite.tolist() == [True, True, False, True]


def test_explicit_ids_of_impossible_tokens_are_not_valid() -> None:
    logits = torch.zeros(1, 100)
    logits[0, 5] = -INFINITY
    explicit = torch.tensor([[5, 6, -1]])
    found = compute_supports(
        torch.log_softmax(logits, -1),
        spec(0, 100, explicit_slots=3),
        torch.zeros(1, dtype=torch.int64),
        explicit,
    )
    assert found.rows.explicit is not None
    assert found.rows.explicit.valid.tolist() == [[False, True, False]]
    assert found.rows.explicit is not None
    assert found.rows.explicit.values[0].tolist() == pytest.approx([0.0, -np.log(99), 0.0])


@pytest.mark.parametrize("ties", [False, True])
def test_rows_are_wide_by_what_their_support_leaves_out(ties: bool) -> None:
    """Row 0 lists all of the ids that matter, row 1 is flat over 40 ids of which it lists 8, row 2
    has hardly anything on them, rows 3 and 4 have 0.004 on those that they do not list, of which 4
    draws one, and row 5 is not finite; float64 over the same logits decides."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 3000, generator=generator) - 12
    wide = np.arange(5, 3000, 71, dtype=np.int32)[:40]
    logits[0, wide[:3]] = 2.0
    logits[1, wide] = 2.0 if ties else 2.0 + torch.rand(40, generator=generator)
    logits[2:5, 100:108] = 6.0
    logits[3:5, wide] = 6.0 + np.log(8 * 0.004 / 40)
    logits[5, 1000] = float("nan")
    asked = spec(8, 3000, wide_ids=wide.tobytes())
    sampled = torch.tensor([0, 0, int(wide[0]), 0, int(wide[0]), 0])
    found = compute_supports(
        torch.log_softmax(logits, -1),
        asked,
        sampled,
        None,
        WideIds.of(asked, 3000, torch.device("cpu")),
    )
    assert isinstance(found.rows, WideRows)
    assert found.rows.wide.tolist() == [1, 4]
    exact = torch.log_softmax(logits[[1, 4]].double(), -1)[:, torch.from_numpy(wide).long()]
    np.testing.assert_allclose(found.rows.wide_log_probs, exact.numpy(), rtol=0, atol=1e-5)
    assert WideIds.of(spec(8, 3000), 3000, torch.device("cpu")) is None
