"""Rollouts through transformers' ``generate``.

Every token is drawn here, from the rollout's own stream (rollout/sampling.py);
``generate`` keeps the cache and knows when to stop. The model's own generation
settings (temperature, top-k, penalties) do not apply.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import torch
from teacher_proto.errors import LsmError
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from student_trainer.config import RolloutSettings
from student_trainer.model import Student
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.sampling import rollout_uniforms, sample

Job = tuple[PromptItem, int]


def generate(
    student: Student,
    prompts: Sequence[PromptItem],
    settings: RolloutSettings,
    *,
    seed: int,
    step: int,
) -> list[Rollout]:
    """``settings.group_size`` responses to each prompt, prompt-major.

    A prompt that occurs again in ``prompts`` goes on counting its responses'
    indices, so no stream is used twice.

    Raises:
        LsmError: the student's logits are not finite.
    """
    return list(iterate(student, prompts, settings, seed=seed, step=step))


def iterate(
    student: Student,
    prompts: Sequence[PromptItem],
    settings: RolloutSettings,
    *,
    seed: int,
    step: int,
) -> Iterator[Rollout]:
    """As ``generate``, each batch of responses as soon as it is done."""
    jobs = _jobs(prompts, settings.group_size)
    for start in range(0, len(jobs), settings.batch_size):
        yield from _batch(student, jobs[start : start + settings.batch_size], settings, seed, step)


def iterate_groups(
    student: Student,
    prompts: Sequence[PromptItem],
    settings: RolloutSettings,
    *,
    seed: int,
    step: int,
) -> Iterator[list[Rollout]]:
    """As ``generate``, each prompt's responses together, as soon as all are done."""
    rollouts = iterate(student, prompts, settings, seed=seed, step=step)
    counted = enumerate(rollouts)
    for _, group in groupby(counted, key=lambda pair: pair[0] // settings.group_size):
        yield [rollout for _, rollout in group]


def _jobs(prompts: Sequence[PromptItem], group_size: int) -> list[Job]:
    seen: Counter[str] = Counter()
    jobs = []
    for prompt in prompts:
        first = seen[prompt.prompt_id]
        seen[prompt.prompt_id] += group_size
        jobs += [(prompt, first + offset) for offset in range(group_size)]
    return jobs


class _Sampler(LogitsProcessor):  # type: ignore[misc]
    """Draws each row's token and leaves only it possible.

    Attributes:
        tokens: int64 [B] per step. log_probs: float32 [B] per step.
    """

    def __init__(self, uniforms: Tensor, settings: RolloutSettings) -> None:
        self.uniforms = uniforms
        self.settings = settings
        self.tokens: list[Tensor] = []
        self.log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores.float() / self.settings.temperature
        log_probs = logits.log_softmax(-1)
        draws = self.uniforms[:, len(self.tokens)]
        tokens = sample(log_probs, draws, self.settings.top_p)
        self.tokens.append(tokens)
        self.log_probs.append(log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1))
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(-1, tokens.unsqueeze(-1), 0.0)


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Hides the model's own generation settings, which ``generate`` would merge in."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@torch.no_grad()
def _batch(
    student: Student, jobs: Sequence[Job], settings: RolloutSettings, seed: int, step: int
) -> list[Rollout]:
    limit = settings.max_new_tokens
    width = max(len(prompt.token_ids) for prompt, _ in jobs)
    input_ids = torch.full((len(jobs), width), student.padding_id, dtype=torch.int64)
    mask = torch.zeros((len(jobs), width), dtype=torch.int64)
    for row, (prompt, _) in enumerate(jobs):
        length = len(prompt.token_ids)
        input_ids[row, width - length :] = torch.from_numpy(prompt.token_ids.astype(np.int64))
        mask[row, width - length :] = 1
    uniforms = np.stack([rollout_uniforms(seed, step, p.prompt_id, i, limit) for p, i in jobs])
    sampler = _Sampler(torch.from_numpy(uniforms).to(student.device), settings)
    configuration = GenerationConfig(
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=list(student.terminators),
        pad_token_id=student.padding_id,
        use_cache=True,
    )
    student.module.eval()
    model = student.causal_model
    with _plain_generation(model):
        model.generate(
            input_ids=input_ids.to(student.device),
            attention_mask=mask.to(student.device),
            generation_config=configuration,
            logits_processor=LogitsProcessorList([sampler]),
        )
    tokens = torch.stack(sampler.tokens, 1).cpu().numpy().astype(np.int32)
    log_probs = torch.stack(sampler.log_probs, 1).cpu().numpy()
    stops = np.isin(tokens, student.terminators)
    return [
        _cut(prompt, index, tokens[row], log_probs[row], stops[row])
        for row, (prompt, index) in enumerate(jobs)
    ]


def _cut(prompt: PromptItem, index: int, tokens: Any, log_probs: Any, stops: Any) -> Rollout:
    """Ends the response with its first terminator, which belongs to it."""
    finished = bool(stops.any())
    length = int(stops.argmax()) + 1 if finished else len(tokens)
    kept = log_probs[:length].copy()
    if not np.isfinite(kept).all():
        raise LsmError(
            "the student's logits are not finite",
            where=f"rollout {index} of prompt {prompt.prompt_id}",
            fix="go back to an earlier checkpoint and lower optimizer.lr",
        )
    return Rollout(prompt, index, tokens[:length].copy(), kept, finished)
