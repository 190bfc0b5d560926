"""From scored rollouts to micro-batches of rows.

ALIGNMENT: the hidden state at position p predicts the token at p + 1. Row t of a response
to a prompt of P tokens belongs to the token at position P + t, so it uses the hidden
state at P + t - 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.rows import required
from teacher_proto.types import Bool, ContinuationScores, Int32
from torch import Tensor

from student_trainer.losses.parts.base import LossBatch
from student_trainer.rollout.base import Rollout
from student_trainer.student.model import Student, lay_out
from student_trainer.student.packing.layout import Layout, sharing

Array = NDArray[Any]


@dataclass(frozen=True)
class Read:
    """What the student reads at once: members of the update, laid out."""

    members: tuple[int, ...]
    layout: Layout


@dataclass(frozen=True)
class MicroBatch:
    """Responses that go through the model together.

    Attributes:
        members: indices of the responses in the update, in the batch's order.
        rows: int64 [T], indices into the hidden states [N, H] of everything that the student
            reads at once.
        owners: int64 [T], which member each row belongs to.
        steps: int64 [T], the row's place t in its response.
    """

    members: tuple[int, ...]
    rows: Tensor
    owners: Tensor
    steps: Tensor

    def rows_of(self, places: Sequence[int]) -> Tensor:
        """bool [T]: the rows of the members at these places."""
        return torch.isin(self.owners, torch.tensor(places, dtype=torch.int64))

    def of(self, places: Sequence[int]) -> MicroBatch:
        """The members at these ascending places alone, whose rows are still indices into the
        hidden states of the whole."""
        kept = self.rows_of(places)
        owners = torch.searchsorted(torch.tensor(places, dtype=torch.int64), self.owners[kept])
        members = tuple(self.members[place] for place in places)
        return MicroBatch(members, self.rows[kept], owners, self.steps[kept])


def student_input(rollout: Rollout) -> Int32:
    """int32 [P + n - 1]: the tokens that the student reads to predict every response token.

    The last token is only predicted, never read.
    """
    return np.concatenate([rollout.prompt.token_ids, rollout.token_ids[:-1]]).astype(np.int32)


def micro_batches(
    rollouts: Sequence[Rollout], budget: int, *, packs: bool
) -> list[tuple[int, ...]]:
    """Indices of the rollouts that go through the model together.

    The shortest responses come first: their scores are there first. What the micro-batches are
    depends on the rollouts alone.

    Args:
        rollouts: of one update; the settings bound the longest by ``budget``.
        budget: tokens that are read at once: those of the layout where ``packs``, otherwise with
            padding.
        packs: whether the student reads sequences side by side.
    """
    if not rollouts:
        return []
    if packs:
        prompts = [rollout.prompt.token_ids for rollout in rollouts]
        return packed_micro_batches(prompts, [len(r.token_ids) - 1 for r in rollouts], budget)
    return padded_micro_batches([len(student_input(r)) for r in rollouts], budget)[::-1]


def packed_micro_batches(
    prompts: Sequence[Int32], lengths: Sequence[int], budget: int
) -> list[tuple[int, ...]]:
    """Packs sequences into micro-batches of at most ``budget`` tokens, where a prompt that several
    share counts once. Those with the same prompt stay together as far as they fit.

    Args:
        prompts: int32 [P] of each sequence.
        lengths: tokens of each sequence after its prompt.

    Returns:
        Indices of the sequences, for each micro-batch; the shortest come first.
    """
    groups: list[tuple[int, ...]] = []
    for members in sharing(prompts):
        size, group = len(prompts[members[0]]), list[int]()
        total = size
        for index in sorted(members, key=lambda index: (lengths[index], index)):
            assert size + lengths[index] <= budget, "settings bound the longest sequence"
            if total + lengths[index] > budget:
                groups.append(tuple(group))
                group, total = [], size
            group.append(index)
            total += lengths[index]
        groups.append(tuple(group))
    batches: list[tuple[int, ...]] = []
    current: tuple[int, ...] = ()
    filled = 0
    for members in sorted(groups, key=lambda members: (lengths[members[-1]], members)):
        size = len(prompts[members[0]]) + sum(lengths[index] for index in members)
        if current and filled + size > budget:
            batches.append(current)
            current, filled = (), 0
        current, filled = current + members, filled + size
    return [*batches, current]


def padded_micro_batches(lengths: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    """Packs sequences into micro-batches of at most ``budget`` padded tokens each.

    The longest come first, equal lengths by index, so the result depends on the lengths
    alone.

    Args:
        lengths: tokens of each sequence; the settings bound them by ``budget``.

    Returns:
        Indices of the sequences, for each micro-batch.
    """
    assert max(lengths) <= budget, "settings bound the longest sequence by the budget"
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[tuple[int, ...]] = []
    current: list[int] = []
    for index in order:
        if current and lengths[current[0]] * (len(current) + 1) > budget:
            batches.append(tuple(current))
            current = []
        current.append(index)
    return [*batches, tuple(current)]


def layout_of(student: Student, members: Sequence[int], rollouts: Sequence[Rollout]) -> Layout:
    """How the student reads these members of the rollouts at once."""
    chosen = [rollouts[member] for member in members]
    prompts = [len(rollout.prompt.token_ids) for rollout in chosen]
    return lay_out(student, [student_input(rollout) for rollout in chosen], prompts)


def micro_batch(
    members: Sequence[int], rollouts: Sequence[Rollout], keep: Sequence[Bool], layout: Layout
) -> MicroBatch:
    """Gathers the rows of a micro-batch that are kept.

    Args:
        members: indices into the two sequences that follow.
        rollouts: of the whole update.
        keep: bool [n] for each rollout, False where a row is left out.
        layout: of the members (``layout_of``).
    """
    rows, owners, steps = [], [], []
    for place, member in enumerate(members):
        kept = np.flatnonzero(keep[member])
        rows.append(layout.places[place][len(rollouts[member].prompt.token_ids) - 1 + kept])
        owners.append(np.full(len(kept), place))
        steps.append(kept)
    return MicroBatch(tuple(members), _int64(rows), _int64(owners), _int64(steps))


def loss_batch(
    batch: MicroBatch,
    hidden: Tensor,
    rollouts: Sequence[Rollout],
    scores: Mapping[int, ContinuationScores],
    top_k: int,
) -> LossBatch:
    """The rows of a micro-batch in the form that the losses take, each with weight 1.

    Args:
        hidden: [N, H] of everything that is read with them.
        rollouts, scores: of the whole update, by the same index. A continuation that the
            teacher could not score (not finite) has NaN in every slot, which the losses
            drop and count.
        top_k: K of the request; with 0 the batch has none of the teacher's own ids.
            ``Rollout.support_ids`` become the explicit ids.
    """
    device = hidden.device
    of_members = [
        (rollouts[member], scores[member], batch.steps[batch.owners == place].numpy())
        for place, member in enumerate(batch.members)
    ]
    asked = [rollout.support_ids for rollout, _, _ in of_members]
    found = LossBatch.from_scores(
        hidden.index_select(0, batch.rows.to(device)),
        [rollout.token_ids[steps] for rollout, _, steps in of_members],
        [scored for _, scored, _ in of_members],
        rows=[steps for _, _, steps in of_members],
        explicit_ids=None
        if all(ids is None for ids in asked)
        else [
            required(ids, "support_ids")[steps]
            for ids, (_, _, steps) in zip(asked, of_members, strict=True)
        ],
        old_log_probs=[rollout.log_probs[steps] for rollout, _, steps in of_members],
        weights=np.ones(len(batch.rows), np.float32),
    )
    if top_k:
        return found
    return replace(found, support_ids=None, support_log_probs=None, support_valid=None)


def sequence_weights(used: Tensor, owners: Tensor, members: int) -> Tensor:
    """float32 [T]: 1 / (number of used rows of the row's response); 0 for unused rows."""
    counts = torch.zeros(members, device=used.device).index_add_(0, owners, used.float())
    return torch.where(used, 1.0 / counts.clamp(min=1.0)[owners], 0.0)


def _int64(parts: Sequence[Array]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
