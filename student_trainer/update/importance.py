"""Importance weights of drawn tokens: of those that an older student drew, truncated, and
of those that were drawn from a nucleus."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.errors import ConfigurationError
from teacher_proto.rows import required
from teacher_proto.types import Float32
from torch import Tensor

from student_trainer.losses.parts.base import Head, LossBatch
from student_trainer.losses.parts.normaliser import token_log_probs
from student_trainer.rollout.base import Rollout

# The smallest weight: a row of weight 0 would not count in the mean's denominator.
LEAST = 1e-30


@torch.no_grad()
def log_ratios(batch: LossBatch, head: Head, temperature: float, chunk_rows: int) -> Tensor:
    """float32 [T]: log pi(y_t) - log pi_old(y_t) of the sampled tokens.

    A row that is not finite gives 0; the loss drops and counts it.

    Args:
        temperature: of the rollout.
        chunk_rows: rows of logits [rows, V] computed at a time.
    """
    now = token_log_probs(batch.hidden.detach(), head, batch.sampled_ids, temperature, chunk_rows)
    moved = (now - required(batch.old_log_probs, "old_log_probs")).float()
    return torch.where(moved.isfinite(), moved, 0.0)


def truncated_weights(log_ratio: Tensor, cap: float) -> Tensor:
    """float32 [T]: pi / pi_old, bounded by ``cap``."""
    return log_ratio.exp().clamp(LEAST, cap)


def nucleus_weights(rollout: Rollout) -> Float32:
    """float32 [n]: pi(y_t) over the probability with which y_t was drawn.

    A token of a nucleus N was drawn with pi(y_t) / pi(N), so this is pi(N), in (0, 1]. The
    weighted policy gradient is the exact gradient of the divergence on N (docs/losses.md).

    Raises:
        ConfigurationError: the rollout does not say what its tokens were drawn from.
    """
    if rollout.nucleus_mass is None:
        raise ConfigurationError(
            "the checkpoint's waiting rollouts do not say which nucleus their tokens were drawn "
            "from: an earlier version of the trainer wrote them",
            where="loss.nucleus_weights",
            fix="set it to false, or start another run in another run.output_dir",
        )
    return np.maximum(rollout.nucleus_mass, np.float32(LEAST))


def chunk_nucleus_weights(rollout: Rollout, chunk: NDArray[np.integer[Any]]) -> Float32:
    """float32 [n]: for each row the product of ``nucleus_weights`` over the row's chunk.

    Args:
        chunk: int [n], which chunk each row belongs to.

    Raises:
        ConfigurationError: as ``nucleus_weights``.
    """
    logs = np.log(nucleus_weights(rollout).astype(np.float64))
    products = np.exp(np.bincount(chunk, logs)).astype(np.float32)
    weights: Float32 = np.maximum(products, np.float32(LEAST))[chunk]
    return weights
