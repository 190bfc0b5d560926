"""The sequence-level signal of a chunk: the span between two places where the student's
and the teacher's tokens meet, whose likelihood the teacher knows though not its tokens'.

For a chunk C = y_i ... y_j behind a prefix the divergence to lower is
KL(pi || q) = E[log pi(C) - log q(C)] over C ~ pi. Its gradient is

    E[(log pi(C) - log q(C)) sum_t grad log pi(y_t)]

since E[grad log pi(C)] = 0. Tokens before t are settled when y_t is drawn, and what they
add to the factor has mean 0 beside grad log pi(y_t): so the part of token t is
-A grad log pi(y_t) with A = log q(C) - log pi(C), for any subset of the chunk's tokens,
whatever the others learn from. A is a constant; the ratio to the policy that drew the
tokens is clipped as in ``sampled_token``.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from student_trainer.losses.base import Head, LossBatch, LossResult, LossSettings
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
    # The token's own verdict that would give it the chunk's advantage.
    verdict = batch.old_log_probs + advantages
    token_level = replace(settings, gamma=0.0, advantage_clamp=clamp)
    return sampled_token(replace(batch, teacher_sampled=verdict), head, token_level)
