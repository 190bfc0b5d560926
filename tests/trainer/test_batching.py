"""Cutting into micro-batches, and the alignment of rows and hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from teacher_proto.rows import Rows, Support, Values
from teacher_proto.types import ContinuationScores, Status, TextPrompt

from student_trainer.losses import choose_support
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.student.packing.layout import Layout, pack, pad
from student_trainer.update.batching import (
    loss_batch,
    micro_batch,
    packed_micro_batches,
    padded_micro_batches,
    sequence_weights,
    student_input,
)


def rollout(prompt: int, response: int, first: int = 0) -> Rollout:
    """Token ids count up from ``first``, so that a token tells its place."""
    ids = np.arange(first, first + prompt + response, dtype=np.int32)
    item = PromptItem(f"p{first}", ids[:prompt], TextPrompt(""))
    return Rollout(item, 0, ids[prompt:], -np.arange(response, dtype=np.float32), True)


def read(rollouts: Sequence[Rollout], *, packed: bool = False) -> Layout:
    sequences = [student_input(one) for one in rollouts]
    if packed:
        return pack(sequences, [len(one.prompt.token_ids) for one in rollouts])
    return pad(sequences, 0)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(40, 200))
def test_a_plan_holds_everything_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = padded_micro_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) * max(lengths[index] for index in batch) <= budget
    assert padded_micro_batches(lengths, budget) == batches
    assert len(padded_micro_batches(lengths, 40 * 30)) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_reads_the_state_before_its_token(packed: bool) -> None:
    # The hidden state at a position is the token there: the row of a token that
    # counts up must read its predecessor.
    rollouts = [rollout(5, 3, 100), rollout(2, 4, 200), rollout(7, 1, 300)]
    keep = [np.ones(len(r.token_ids), np.bool_) for r in rollouts]
    layout = read([rollouts[member] for member in (2, 0, 1)], packed=packed)
    batch = micro_batch((2, 0, 1), rollouts, keep, layout)
    hidden = torch.from_numpy(layout.ids.reshape(-1, 1).astype(np.float32))
    scores = {
        member: ContinuationScores(
            rows=Rows(
                support=Support(
                    np.stack([r.token_ids, r.token_ids + 1], 1),
                    np.full((len(r.token_ids), 2), -1, np.float32),
                    np.full(len(r.token_ids), 2, np.int32),
                ),
                sampled=Values(
                    -r.token_ids.astype(np.float32), np.ones(len(r.token_ids), np.bool_)
                ),
            )
        )
        for member, r in enumerate(rollouts)
    }
    rows = loss_batch(batch, hidden, rollouts, scores, 2)
    assert rows.sampled_ids.tolist() == [307, 105, 106, 107, 202, 203, 204, 205]
    assert (rows.hidden[:, 0] == rows.sampled_ids - 1).all()
    assert rows.support_ids is not None
    assert rows.teacher_sampled is not None
    assert rows.old_log_probs is not None
    assert (rows.support_ids[:, 0] == rows.sampled_ids).all()
    assert (rows.teacher_sampled == -rows.sampled_ids).all()
    assert rows.old_log_probs.tolist() == [0, 0, -1, -2, 0, -1, -2, -3]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=24),
    st.integers(40, 200),
)
def test_a_packed_plan_holds_everything_once_within_the_budget(
    sequences: list[tuple[int, int]], budget: int
) -> None:
    prompts = [np.arange(prompt, 2 * prompt + 3, dtype=np.int32) for prompt, _ in sequences]
    lengths = [length for _, length in sequences]
    batches = packed_micro_batches(prompts, lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest == sorted(longest), "the responses that end first are read first"
    for batch in batches:
        whole = [np.concatenate([prompts[i], np.zeros(lengths[i], np.int32)]) for i in batch]
        layout = pack(whole, [len(prompts[i]) for i in batch])
        assert layout.tokens == layout.ids.size <= budget
        assert layout.tokens == sum(lengths[i] for i in batch) + sum(
            len(prompt) for prompt in {p.tobytes(): p for p in (prompts[i] for i in batch)}.values()
        )


def test_a_layout_places_every_token_of_every_sequence() -> None:
    rollouts = [rollout(4, 3, 10), rollout(2, 1, 50), rollout(4, 5, 10), rollout(3, 2, 90)]
    sequences = [student_input(one) for one in rollouts]
    layout = read(rollouts, packed=True)
    assert layout.ids.shape == (1, 4 + 2 + 4 + 2 + 4), "the shared prompt stands once"
    padded = read(rollouts)
    for found in (layout, padded):
        for places, sequence in zip(found.places, sequences, strict=True):
            assert found.ids.ravel()[places].tolist() == sequence.tolist()
            assert found.positions.ravel()[places].tolist() == list(range(len(sequence)))
    assert [(s.start, s.stop, s.beginning) for s in layout.segments] == [
        (0, 4, None), (4, 6, 0), (6, 10, 0), (10, 12, None), (12, 16, None)
    ]  # fmt: skip
    assert padded.tokens == sum(map(len, sequences))


def test_masked_rows_slots_and_ids_leave() -> None:
    one, two = rollout(3, 4, 10), rollout(3, 2, 50)
    keep = [np.array([True, False, False, True]), np.array([False, True])]
    batch = micro_batch((0, 1), [one, two], keep, read([one, two]))
    ids = np.array([[1, 2, 3], [4, 5, -1], [6, -1, -1], [2, 8, 9]], np.int32)
    scores = {
        0: ContinuationScores(
            rows=Rows(
                support=Support(
                    ids, np.full((4, 3), -1, np.float32), np.array([3, 2, 1, 3], np.int32)
                ),
                sampled=Values(np.zeros(4, np.float32), np.array([True, True, True, False])),
            )
        ),
        1: ContinuationScores(status=Status.NON_FINITE),
    }
    hidden = torch.zeros(12, 1)
    rows = loss_batch(batch, hidden, [one, two], scores, 3)
    rows = choose_support(rows, "teacher", removed=torch.tensor([2]))
    assert rows.sampled_ids.tolist() == [13, 16, 54]
    assert rows.support_valid is not None
    assert rows.support_ids is not None
    assert rows.support_log_probs is not None
    assert rows.teacher_sampled is not None
    # Id 2 is taken out of the supports; the continuation without rows is NaN.
    assert rows.support_valid[:2].tolist() == [[True, False, True], [False, True, True]]
    assert rows.support_ids[:2].tolist() == [[1, 2, 3], [2, 8, 9]]
    assert rows.support_log_probs[2].isnan().all()
    assert rows.support_valid[2].any()
    assert rows.teacher_sampled.isnan().tolist() == [False, True, True]


def test_the_tail_travels_with_its_rows() -> None:
    one = rollout(3, 3, 10)
    scores = ContinuationScores(
        rows=Rows(
            support=Support(
                np.array([[1, 2], [3, 4], [5, 6]], np.int32),
                np.full((3, 2), -1, np.float32),
                np.full(3, 2, np.int32),
            ),
            sampled=Values(np.zeros(3, np.float32), np.ones(3, np.bool_)),
            log_tail=Values(np.array([-1, -2, 0], np.float32), np.array([True, True, False])),
        )
    )
    batch = micro_batch((0,), [one], [np.array([False, True, True])], read([one]))
    rows = loss_batch(batch, torch.zeros(5, 1), [one], {0: scores}, 2)
    assert rows.teacher_log_tail is not None
    assert rows.teacher_tail_valid is not None
    assert rows.teacher_log_tail.tolist() == [-2, 0]
    assert rows.teacher_tail_valid.tolist() == [True, False]


def test_the_sampled_token_joins_a_support_that_lacks_it() -> None:
    one = rollout(3, 4, 10)  # responds 13, 14, 15, 16
    scores = ContinuationScores(
        rows=Rows(
            support=Support(
                np.array([[13, 2], [3, 4], [15, -1], [5, 6]], np.int32),
                np.array([[-1, -2], [-1, -2], [-1, 0], [-1, -2]], np.float32),
                np.array([2, 2, 1, 2], np.int32),
            ),
            sampled=Values(
                np.array([-1, -5, -1, 0], np.float32), np.array([True, True, True, False])
            ),
        )
    )
    batch = micro_batch((0,), [one], [np.ones(4, np.bool_)], read([one]))
    known = loss_batch(batch, torch.zeros(6, 1), [one], {0: scores}, 2)
    rows = choose_support(known, "teacher+sampled")
    assert rows.support_ids is not None
    assert rows.support_valid is not None
    assert rows.support_log_probs is not None
    assert rows.support_ids[:, 2].tolist() == [13, 14, 15, 16]
    # In the support already; not in it; in it; unknown to the teacher.
    assert rows.support_valid[:, 2].tolist() == [False, True, False, False]
    assert rows.support_log_probs[1, 2] == -5


def test_sequence_weights_are_one_over_the_used_rows() -> None:
    used = torch.tensor([True, True, False, True, False])
    owners = torch.tensor([0, 0, 0, 1, 2])
    assert sequence_weights(used, owners, 3).tolist() == [0.5, 0.5, 0, 1.0, 0]


def test_the_teacher_at_the_students_ids_travels_with_its_rows() -> None:
    one = replace(rollout(3, 3, 10), support_ids=np.array([[1, 2], [3, 4], [5, 6]], np.int32))
    two = replace(rollout(2, 1, 50), support_ids=np.array([[7, 8]], np.int32))
    scores = {
        0: ContinuationScores(
            rows=Rows(
                sampled=Values(np.zeros(3, np.float32), np.ones(3, np.bool_)),
                explicit=Values(
                    -np.array([[1, 2], [3, 4], [5, 6]], np.float32),
                    np.array([[True, True], [True, False], [True, True]]),
                ),
            )
        ),
        1: ContinuationScores(status=Status.NON_FINITE),
    }
    keep = [np.array([False, True, True]), np.ones(1, np.bool_)]
    batch = micro_batch((1, 0), [one, two], keep, read([two, one]))
    rows = loss_batch(batch, torch.zeros(10, 1), [one, two], scores, 0)
    assert rows.support_ids is None
    assert rows.explicit_ids is not None
    assert rows.explicit_log_probs is not None
    assert rows.explicit_valid is not None
    assert rows.explicit_ids.tolist() == [[7, 8], [3, 4], [5, 6]]
    assert rows.explicit_log_probs[0].isnan().all()
    assert rows.explicit_log_probs[1:].tolist() == [[-3, -4], [-5, -6]]
    assert rows.explicit_valid.tolist() == [[True, True], [True, False], [True, True]]
    assert rows.responses is not None
    assert rows.steps is not None
    assert rows.responses.tolist() == [0, 1, 1]
    assert rows.steps.tolist() == [0, 1, 2]
