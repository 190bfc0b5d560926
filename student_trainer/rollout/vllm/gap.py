"""How far vLLM's log-probabilities are from the trainer's own: the bound that a batch must keep.

The trainer learns from the log-probabilities that the sampler has drawn with: they are the
denominators of importance weights. The two are never equal in floating point. A difference
above the bound means other weights, another treatment of the logits, or a fault.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from teacher_proto.errors import LsmError
from teacher_proto.types import Float32

from student_trainer.rollout.base import Rollout
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.head import head_logits
from student_trainer.student.model import Student, hidden_states

# Nats. What rounding alone gives, and a missed hand-over, is in docs/rollouts.md
# (benchmarks/trainer/log_prob_gap.py).
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.1}
ROWS = 128
TOO_LARGE = "ROLLOUT_LOG_PROB_GAP"


def bound_of(student: Student, settings: RolloutSettings) -> float:
    """The largest mean difference, in nats."""
    own = settings.vllm.max_log_prob_gap
    return BOUNDS[student.dtype] if own is None else own


def check_gap(student: Student, settings: RolloutSettings, rollouts: Sequence[Rollout]) -> float:
    """The mean absolute difference of some responses' log-probabilities, in nats.

    Args:
        rollouts: that the student has written with the weights that it has now.

    Raises:
        LsmError: it is above the bound: the step is refused.
    """
    differences = []
    left = settings.vllm.gap_tokens
    for rollout in rollouts:
        part = rollout.first(left)
        differences.append(
            np.abs(own_log_probs(student, part, settings.temperature) - part.log_probs)
        )
        left -= len(part.token_ids)
        if left <= 0:
            break
    gap = float(np.concatenate(differences).mean())
    bound = bound_of(student, settings)
    if not gap <= bound:
        raise LsmError(
            f"vLLM has drawn with log-probabilities that differ from the trainer's own by "
            f"{gap:.3g} nats on average, and at most {bound:g} are allowed: the step is refused",
            where="rollout.vllm.max_log_prob_gap",
            fix="raise it if the difference is one of rounding, or set rollout.engine = "
            '"transformers"',
            reason=TOO_LARGE,
        )
    return gap


@torch.no_grad()
def own_log_probs(student: Student, rollout: Rollout, temperature: float) -> Float32:
    """float32 [n]: the trainer's own log-probabilities of a response's tokens."""
    prompt, ids = rollout.prompt.token_ids, rollout.token_ids
    student.module.eval()
    hidden = hidden_states(student, [np.concatenate([prompt, ids[:-1]])])[0, len(prompt) - 1 :]
    tokens = torch.from_numpy(ids.astype(np.int64)).to(student.device)
    found = []
    for first in range(0, len(ids), ROWS):
        rows = head_logits(student.head, hidden[first : first + ROWS]) / temperature
        own = tokens[first : first + ROWS].unsqueeze(-1)
        found.append(rows.log_softmax(-1).gather(-1, own).squeeze(-1))
    log_probs: Float32 = torch.cat(found).cpu().numpy()
    return log_probs
