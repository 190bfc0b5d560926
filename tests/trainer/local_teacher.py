"""A teacher in the same process: the same Hugging Face model, scored in full, for
tests whose subject is the trainer's arithmetic and not the service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from teacher_proto.rows import Rows, Support, Values
from teacher_proto.types import ContinuationScores
from transformers import AutoModelForCausalLM

from student_trainer.rollout.base import Rollout


class LocalTeacher:
    def __init__(self, model: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    @torch.no_grad()
    def log_probs(self, rollout: Rollout, temperature: float = 1.0) -> torch.Tensor:
        """float32 [n, V]: the row of every response token, from one plain forward."""
        prompt = len(rollout.prompt.token_ids)
        ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids])
        logits = self.model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
        return (logits[prompt - 1 : -1].float() / temperature).log_softmax(-1)

    def score(
        self, rollouts: Sequence[Rollout], top_k: int, temperature: float = 1.0
    ) -> list[ContinuationScores]:
        scores = []
        for rollout in rollouts:
            rows = self.log_probs(rollout, temperature)
            values, ids = rows.topk(top_k, -1)
            sampled = rows.gather(-1, torch.from_numpy(rollout.token_ids.astype(np.int64))[:, None])
            count = len(rollout.token_ids)
            scores.append(
                ContinuationScores(
                    rows=Rows(
                        support=Support(
                            ids.numpy().astype(np.int32),
                            values.numpy(),
                            np.full(count, top_k, np.int32),
                        ),
                        sampled=Values(sampled[:, 0].numpy(), np.ones(count, np.bool_)),
                    )
                )
            )
        return scores
