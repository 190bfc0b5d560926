"""The baseline of rollouts: transformers' ``generate``, batch after batch, each until its longest
response has ended. Lengths are forced; tokens are drawn as the trainer draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.engine import response_keys
from student_trainer.rollout.sampling import rollout_uniforms, sample
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student


class _Draws:
    """Draws a token for every row of a batch at every step, keeps it with its log-probability,
    and makes it the only possible one."""

    def __init__(self, uniforms: Tensor, settings: RolloutSettings, undrawn: Tensor | None) -> None:
        self.uniforms, self.settings, self.undrawn = uniforms, settings, undrawn
        self.tokens = torch.zeros(uniforms.shape, dtype=torch.int64)
        self.log_probs = torch.zeros(uniforms.shape)
        self.masses = torch.ones(uniforms.shape)
        self.drawn = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores.float() / self.settings.temperature
        if self.undrawn is not None:
            logits = logits.index_fill(-1, self.undrawn, -torch.inf)
        log_probs = logits.log_softmax(-1)
        at = self.drawn
        tokens, masses = sample(log_probs, self.uniforms[:, at], self.settings.top_p)
        self.tokens[:, at], self.masses[:, at] = tokens, masses
        self.log_probs[:, at] = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        self.drawn += 1
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(-1, tokens.unsqueeze(-1), 0.0)


@torch.no_grad()
def static_generate(
    student: Student,
    prompts: Sequence[PromptItem],
    settings: RolloutSettings,
    lengths: Sequence[int],
    *,
    seed: int,
    step: int,
) -> list[Rollout]:
    """Writes a response of each of ``lengths``, in the order of ``response_keys``."""
    keys = response_keys(prompts, settings.group_size)
    rollouts: list[Rollout] = []
    student.module.eval()
    for start in range(0, len(keys), settings.batch_size):
        batch = keys[start : start + settings.batch_size]
        wanted = torch.tensor(lengths[start : start + settings.batch_size])
        longest = int(wanted.max())
        width = max(len(key.prompt.token_ids) for key in batch)
        ids = torch.full((len(batch), width), student.padding_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, key in enumerate(batch):
            own = torch.from_numpy(key.prompt.token_ids.astype(np.int64))
            ids[row, width - len(own) :] = own
            mask[row, width - len(own) :] = 1
        uniforms = np.stack(
            [rollout_uniforms(seed, step, k.prompt.prompt_id, k.index, longest) for k in batch]
        )
        draws = _Draws(torch.from_numpy(uniforms), settings, student.undrawn)

        def closed(
            input_ids: Tensor, scores: Any, draws: _Draws = draws, wanted: Tensor = wanted
        ) -> Tensor:
            return draws.drawn >= wanted

        student.causal_model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=longest, pad_token_id=student.padding_id
            ),
            logits_processor=LogitsProcessorList([draws]),
            stopping_criteria=StoppingCriteriaList([closed]),
        )
        for row, key in enumerate(batch):
            count = int(wanted[row])
            rollouts.append(
                Rollout(
                    key.prompt,
                    key.index,
                    draws.tokens[row, :count].numpy().astype(np.int32),
                    draws.log_probs[row, :count].numpy().copy(),
                    finished=True,
                    nucleus_mass=draws.masses[row, :count].numpy().copy(),
                )
            )
    return rollouts
