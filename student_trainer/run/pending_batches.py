"""Batches that wait for their update, as a checkpoint keeps them.

With staleness s a checkpoint between two steps holds s batches. Their tokens are saved,
because the weights that wrote them are gone. Their scores are requested again, because
the teacher gives the same ones again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from student_trainer.pipeline import Batch, Pipeline
from student_trainer.rollout.base import Rollout


@dataclass(frozen=True)
class PendingBatch:
    """A batch without its rollouts; attributes as in ``Batch``."""

    step: int
    position: int
    written_after: int


def describe_batches(batches: Sequence[Batch]) -> tuple[PendingBatch, ...]:
    return tuple(PendingBatch(b.step, b.position, b.written_after) for b in batches)


def rollout_tensors(batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The batches' rollouts, by ``step/field``: tokens and log-probabilities of the
    responses one after another, their supports and nuclei if they are known, and
    for each response its length, index and whether it finished."""
    kept: dict[str, Tensor] = {}
    for batch in batches:
        rollouts = batch.rollouts
        fields = {
            "tokens": np.concatenate([r.token_ids for r in rollouts]),
            "log_probs": np.concatenate([r.log_probs for r in rollouts]),
            "lengths": np.array([len(r.token_ids) for r in rollouts], np.int32),
            "indices": np.array([r.index for r in rollouts], np.int32),
            "finished": np.array([r.finished for r in rollouts], np.uint8),
        }
        supports = [r.support_ids for r in rollouts if r.support_ids is not None]
        if supports:
            fields["support_ids"] = np.concatenate(supports)
        masses = [r.nucleus_mass for r in rollouts if r.nucleus_mass is not None]
        if masses:
            fields["nucleus_mass"] = np.concatenate(masses)
        kept |= {f"{batch.step}/{name}": torch.from_numpy(v) for name, v in fields.items()}
    return kept


def restore_batches(
    described: Sequence[PendingBatch], kept: Mapping[str, Tensor], pipeline: Pipeline
) -> list[Batch]:
    """The batches that ``describe_batches`` and ``rollout_tensors`` were given."""
    size = pipeline.config.rollout.group_size
    found = []
    for entry in described:
        tokens, log_probs, lengths, indices, finished = (
            kept[f"{entry.step}/{name}"].numpy()
            for name in ("tokens", "log_probs", "lengths", "indices", "finished")
        )
        supports = kept.get(f"{entry.step}/support_ids")
        masses = kept.get(f"{entry.step}/nucleus_mass")
        ends = np.cumsum(lengths)
        prompts = pipeline.prompts_at(entry.position)
        rollouts = [
            Rollout(
                prompts[place // size],
                int(indices[place]),
                tokens[end - length : end].copy(),
                log_probs[end - length : end].copy(),
                bool(finished[place]),
                None if supports is None else supports.numpy()[end - length : end].copy(),
                None if masses is None else masses.numpy()[end - length : end].copy(),
            )
            for place, (end, length) in enumerate(zip(ends, lengths, strict=True))
        ]
        found.append(Batch(entry.step, entry.position, entry.written_after, rollouts))
    return found
