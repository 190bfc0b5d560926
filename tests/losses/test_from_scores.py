"""``LossBatch.from_scores``: every value of a reply reaches its row, and what does not fit is
refused by its name, dtype and shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.rows import Rows, Support, Values
from teacher_proto.types import ContinuationScores, PositionClass, Realignment, Status

from student_trainer.losses import (
    Head,
    LossBatch,
    LossBatchError,
    LossSettings,
    choose_support,
    lsm,
    single_ids_as_coarse,
)

HIDDEN, VOCABULARY = 5, 40
C = PositionClass


def values(array: Any, valid: Any = None) -> Values:
    array = np.asarray(array, np.float32)
    return Values(array, np.ones(array.shape, np.bool_) if valid is None else np.asarray(valid))


def scores(count: int, top_k: int, first: int = 0, **parts: Any) -> ContinuationScores:
    """Rows whose ids and values tell their place: row t has the ids first + 10 t, + 1, ..."""
    row = first + 10 * np.arange(count)[:, None]
    ids = (row + np.arange(top_k)).astype(np.int32)
    support = Support(
        ids, np.log(0.4 / (1 + ids - row)).astype(np.float32), np.full(count, top_k, np.int32)
    )
    return ContinuationScores(rows=Rows(support=support, **parts))


def realigned(count: int, classes: list[PositionClass], counts: list[int]) -> ContinuationScores:
    given = scores(count, 3, log_tail=values(np.full(count, -1.5)))
    support = given.rows.support
    assert support is not None
    filled = np.arange(3) < np.array(counts)[:, None]
    rows = Rows(
        support=Support(
            np.where(filled, support.ids, -1).astype(np.int32),
            np.where(filled, support.log_probs, 0).astype(np.float32),
            np.array(counts, np.int32),
        ),
        log_tail=given.rows.log_tail,
    )
    zeros = np.zeros(count, np.float32)
    block = Realignment(
        zeros, zeros, zeros, np.array(classes, np.uint8), np.zeros(count, np.int32), zeros[:1]
    )
    return ContinuationScores(rows=rows, realignment=block)


def hidden(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, HIDDEN, generator=generator, requires_grad=True)


def test_every_part_of_every_response_stands_at_its_row() -> None:
    one = scores(2, 3, 0, sampled=values([-1, -2]), log_tail=values([-3, 0], [True, False]))
    explicit = values([[-4, 0], [-5, -6]], [[True, False], [True, True]])
    one = ContinuationScores(rows=Rows(**{**vars(one.rows), "explicit": explicit}))
    two = scores(1, 3, 7, sampled=values([-7]), log_tail=values([-8]), explicit=values([[-9, -1]]))
    states = hidden(3)
    batch = LossBatch.from_scores(
        states,
        [[4, 5], torch.tensor([6])],
        [one, two],
        explicit_ids=[np.array([[1, -1], [2, 3]], np.int32), [[4, 5]]],
        old_log_probs=[[-0.1, -0.2], np.array([-0.3])],
    )
    assert batch.hidden is states
    assert batch.sampled_ids.tolist() == [4, 5, 6]
    assert batch.support_ids is not None
    assert batch.support_ids.tolist() == [[0, 1, 2], [10, 11, 12], [7, 8, 9]]
    expected = {
        "weights": [1, 1, 1],
        "teacher_sampled": [-1, -2, -7],
        "teacher_log_tail": [-3, 0, -8],
        "teacher_tail_valid": [True, False, True],
        "explicit_ids": [[1, 0], [2, 3], [4, 5]],
        "explicit_log_probs": [[-4, 0], [-5, -6], [-9, -1]],
        "explicit_valid": [[True, False], [True, True], [True, True]],
        "responses": [0, 0, 1],
        "steps": [0, 1, 0],
        "coarse": None,
    }
    for name, value in expected.items():
        found = getattr(batch, name)
        assert (None if found is None else found.tolist()) == value, name
    assert batch.old_log_probs is not None
    assert torch.allclose(batch.old_log_probs, torch.tensor([-0.1, -0.2, -0.3]))
    union = choose_support(batch, "union")
    assert union.support_valid is not None
    assert union.support_valid.sum(-1).tolist() == [3, 5, 5]  # ids 1 and -1 add none to row 0


def test_supports_of_two_widths_lose_nothing() -> None:
    """One batch of a K of 2 and of 4 has the loss and the gradient of two batches."""
    parts = [scores(3, 2), scores(2, 4, 3)]
    sampled = [[1, 2, 3], [4, 5]]
    weight = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(1))

    def run(states: torch.Tensor, of: list[int]) -> torch.Tensor:
        batch = LossBatch.from_scores(states, [sampled[i] for i in of], [parts[i] for i in of])
        result = lsm(batch, Head(weight), LossSettings())
        assert result.used.all()
        result.total.backward()
        return result.per_row

    together = hidden(5)
    apart = together.detach().clone().requires_grad_()
    whole = run(together, [0, 1])
    separate = torch.cat([run(apart[:3], [0]), run(apart[3:], [1])])
    assert torch.allclose(whole, separate, atol=1e-6)
    assert together.grad is not None
    assert apart.grad is not None
    assert torch.allclose(together.grad, apart.grad, atol=1e-6)


def test_rows_that_tell_nothing_have_no_weight_and_coarse_ones_are_marked() -> None:
    classes = [C.ALIGNED, C.MASKED, C.COARSE, C.ALIGNED]
    failed = ContinuationScores(status=Status.NOT_REALIGNED, detail="too long")
    batch = LossBatch.from_scores(
        hidden(6), [[1, 2, 3, 4], [5, 6]], [realigned(4, classes, [3, 0, 2, 1]), failed]
    )
    assert batch.weights.tolist() == [1, 0, 1, 1, 0, 0]
    assert batch.coarse_rows.tolist() == [False, False, True, False, False, False]
    assert single_ids_as_coarse(batch).coarse_rows.tolist() == [
        False, False, True, True, False, False,
    ]  # fmt: skip
    assert lsm(batch, Head(torch.randn(VOCABULARY, HIDDEN)), LossSettings()).used.tolist() == [
        True, False, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("others", [[], [scores(2, 3, sampled=values([-1, -2]))]])
def test_a_response_that_is_not_finite_is_dropped_and_counted(
    others: list[ContinuationScores],
) -> None:
    lost = ContinuationScores(status=Status.NON_FINITE)
    rows = 2 + 2 * len(others)
    batch = LossBatch.from_scores(hidden(rows), [[1, 2]] * (1 + len(others)), [lost, *others])
    result = lsm(batch, Head(torch.randn(VOCABULARY, HIDDEN)), LossSettings())
    assert result.dropped_non_finite == 2
    assert int(result.used.sum()) == rows - 2
    assert batch.teacher_sampled is not None
    assert batch.teacher_sampled[:2].isnan().all()


def test_chosen_rows_and_weights() -> None:
    batch = LossBatch.from_scores(
        hidden(2),
        [np.array([8, 9])],
        [scores(4, 2, sampled=values([-1, -2, -3, -4]))],
        rows=[[1, 3]],
        weights=torch.tensor([0.5, 2.0]),
    )
    assert batch.support_ids is not None
    assert batch.support_ids[:, 0].tolist() == [10, 30]
    assert batch.teacher_sampled is not None
    assert batch.teacher_sampled.tolist() == [-2, -4]
    assert batch.steps is not None
    assert batch.steps.tolist() == [1, 3]
    assert batch.weights.tolist() == [0.5, 2.0]


def test_bfloat16_and_a_response_without_rows_are_taken() -> None:
    half = torch.tensor([-0.1, -0.2], dtype=torch.bfloat16)
    batch = LossBatch.from_scores(
        hidden(2),
        [[1, 2], []],
        [scores(2, 2), scores(0, 2)],
        old_log_probs=[half, half[:0]],
        weights=torch.tensor([0.5, 1.0], dtype=torch.bfloat16),
    )
    assert batch.old_log_probs is not None
    assert batch.old_log_probs.tolist() == half.tolist()
    assert batch.weights.tolist() == [0.5, 1.0]
    assert batch.sampled_ids.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("change", "where", "told"),
    [
        ({"hidden": torch.zeros(2, HIDDEN)}, "hidden", "torch.float32 [2, 5]"),
        ({"hidden": torch.zeros(3, 1, HIDDEN)}, "hidden", "torch.float32 [3, 1, 5]"),
        (
            {"hidden": torch.zeros(3, HIDDEN, dtype=torch.int64)},
            "hidden",
            "torch.int64 [3, 5]",
        ),
        ({"sampled_ids": [[1, 2]]}, "sampled_ids[0]", "int64 [2]"),
        ({"sampled_ids": [[1.0, 2.0, 3.0]]}, "sampled_ids[0]", "float64 [3]"),
        ({"sampled_ids": [[[1, 2, 3]]]}, "sampled_ids[0]", "int64 [1, 3]"),
        ({"sampled_ids": [[1, 2, 3], [4]]}, "sampled_ids", "2 arrays for 1 scores"),
        ({"rows": [[0, 1, 3]]}, "rows[0]", "from 0 to 3"),
        ({"rows": [[-1, 0, 1]]}, "rows[0]", "from -1 to 1"),
        ({"scores": [ContinuationScores()]}, "scores[0]", "no rows"),
        ({"scores": []}, "scores", "no scores"),
        ({"explicit_ids": None}, "explicit_ids", "float32 [3, 2]"),
        ({"explicit_ids": [np.zeros((3, 1), int)]}, "explicit_ids[0]", "int64 [3, 1]"),
        ({"explicit_ids": [[[0.5, 1.0]] * 3]}, "explicit_ids[0]", "float64 [3, 2]"),
        ({"explicit_ids": [[[1, 2], [3], [4]]]}, "explicit_ids[0]", "no array"),
        ({"scores": [scores(3, 2)]}, "explicit_ids[0]", "no values at explicit ids"),
        ({"old_log_probs": [[-1.0, -2.0]]}, "old_log_probs[0]", "float64 [2]"),
        ({"weights": np.ones(2)}, "weights", "float64 [2]"),
        ({"weights": [1, 1, 1]}, "weights", "int64 [3]"),
        ({"weights": [1.0, float("nan"), 1.0]}, "weights", "float64 [3], and that of row 1 is nan"),
        ({"weights": [1.0, 1.0, -0.5]}, "weights", "row 2 is -0.5"),
        ({"weights": [float("inf"), 1.0, 1.0]}, "weights", "row 0 is inf"),
        ({"hidden": np.zeros((3, HIDDEN), np.float32)}, "hidden", "a ndarray"),
        ({"sampled_ids": [[1, -2, 3]]}, "sampled_ids[0]", "int64 [3] and holds -2"),
        ({"sampled_ids": None}, "sampled_ids", "0 arrays for 1 scores"),
        ({"scores": scores(3, 2)}, "scores", "of one response"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_dtype_and_shape(
    change: dict[str, Any], where: str, told: str
) -> None:
    given: dict[str, Any] = {
        "hidden": hidden(3),
        "sampled_ids": [[1, 2, 3]],
        "scores": [scores(3, 2, explicit=values(np.zeros((3, 2))))],
        "explicit_ids": [np.ones((3, 2), np.int32)],
    }
    LossBatch.from_scores(**given)
    with pytest.raises(LossBatchError) as caught:
        LossBatch.from_scores(**given | change)
    assert caught.value.where == where
    assert told in caught.value.what
    assert caught.value.fix
