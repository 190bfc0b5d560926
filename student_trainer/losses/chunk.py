"""The policy gradient of a chunk: the text between two points where the student's and the
teacher's tokens are in step. The teacher knows its likelihood, but not that of its tokens.

For a chunk C = y_i ... y_j after a prefix, the divergence to lower is
KL(pi || q) = E[log pi(C) - log q(C)] over C ~ pi. Its gradient is

    E[(log pi(C) - log q(C)) sum_t grad log pi(y_t)]

since E[grad log pi(C)] = 0. The tokens before t are fixed when y_t is drawn, so their part
of the factor has mean 0 when it multiplies grad log pi(y_t). Token t therefore contributes
-A grad log pi(y_t) with A = log q(C) - log pi(C). This holds for any subset of the chunk's
tokens, whatever the others learn from. A is a constant; the ratio to the policy that drew
the tokens is clipped as in ``sampled_token``.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from student_trainer.losses.parts.base import Head, LossBatch, LossResult, LossSettings
from student_trainer.losses.sampled_token import sampled_token


def chunk_policy(
    batch: LossBatch,
    advantages: Tensor,
    head: Head,
    settings: LossSettings,
    clamp: float | None = None,
) -> LossResult:
    """Clipped policy gradient with the chunk's advantage at each of its rows.

    Args:
        advantages: float32 [T], log q(C) - log pi_old(C) of each row's chunk.
        clamp: bound on |advantage|, nats, or None.

    Raises:
        ValueError: the batch has no rollout log-probabilities.
    """
    if batch.old_log_probs is None:
        raise ValueError("chunk_policy needs the rollout's log-probability of the sampled token")
    # The log-probability of the teacher that would give the token its chunk's advantage.
    teacher = batch.old_log_probs + advantages
    token_level = replace(settings, gamma=0.0, advantage_clamp=clamp)
    return sampled_token(replace(batch, teacher_sampled=teacher), head, token_level)
