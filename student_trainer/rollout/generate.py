"""Rollouts through transformers' ``generate``.

Every token is drawn here, from the rollout's own random stream (rollout/sampling.py);
``generate`` keeps the cache and stops. The model's own generation settings (temperature,
top-k, penalties) do not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.engine import Ended, ResponseKey, response_keys
from student_trainer.rollout.sampling import rollout_uniforms, sample
from student_trainer.rollout.stopping import StopStrings, pieces_of
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student, not_finite


def generate(
    student: Student,
    prompts: Sequence[PromptItem],
    settings: RolloutSettings,
    *,
    seed: int,
    step: int,
    ended: Ended | None = None,
    weights_version: int | None = None,
) -> list[Rollout]:
    """Writes ``settings.group_size`` responses to each prompt, prompt-major.

    Ids that no token has are never drawn. ``ended`` is called while other responses are still
    being written, in an order that depends on the responses alone.

    Args:
        weights_version: what the rollouts carry; None where they are of no step.

    Raises:
        LsmError: the student's logits are not finite.
    """
    keys = response_keys(prompts, settings.group_size)
    rollouts: list[Rollout] = []
    for start in range(0, len(keys), settings.batch_size):
        batch = keys[start : start + settings.batch_size]
        rollouts += _batch(student, batch, settings, seed, step, start, ended, weights_version)
    return rollouts


class _Sampler(LogitsProcessor):  # type: ignore[misc]
    """Draws each row's token, makes it the only possible one, and reports ended rows.

    Attributes:
        tokens, log_probs: int64 and float32 [B, limit], what was drawn.
        masses: float32 [B, limit], probabilities of the nuclei that it was drawn from.
        drawn: how many tokens were drawn for each row.
        open: bool [B], rows that have not ended.
    """

    def __init__(
        self,
        uniforms: Tensor,
        settings: RolloutSettings,
        terminators: Tensor,
        undrawn: Tensor | None,
        stop_strings: StopStrings | None,
        ended: Callable[[list[int]], None],
    ) -> None:
        self.uniforms = uniforms
        self.settings = settings
        self.terminators = terminators
        self.undrawn = undrawn
        self.stop_strings = stop_strings
        self.ended = ended
        self.tokens = torch.zeros(uniforms.shape, dtype=torch.int64, device=uniforms.device)
        self.log_probs = torch.zeros(uniforms.shape, device=uniforms.device)
        self.masses = torch.ones(uniforms.shape, device=uniforms.device)
        self.open = torch.ones(len(uniforms), dtype=torch.bool, device=uniforms.device)
        self.drawn = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores.float() / self.settings.temperature
        if self.undrawn is not None:
            logits = logits.index_fill(-1, self.undrawn, -torch.inf)
        log_probs = logits.log_softmax(-1)
        uniforms = self.uniforms[:, self.drawn]
        tokens, masses = sample(log_probs, uniforms, self.settings.top_p)
        self.masses[:, self.drawn] = masses
        self.tokens[:, self.drawn] = tokens
        self.log_probs[:, self.drawn] = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        self.drawn += 1
        stops = torch.isin(tokens, self.terminators) & self.open
        if self.stop_strings is not None:
            writing = (self.open & ~stops).nonzero().squeeze(-1).tolist()
            stops[self.stop_strings.completed(writing, tokens.tolist())] = True
        self.open &= ~stops
        rows = stops.nonzero().squeeze(-1).tolist()
        if rows:
            self.ended(rows)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(-1, tokens.unsqueeze(-1), 0.0)

    def closed(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """bool [B]: rows that have ended, by a token or by a text; a stopping criterion."""
        return ~self.open


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Hides the model's own generation settings, which ``generate`` would apply."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@torch.no_grad()
def _batch(
    student: Student,
    keys: Sequence[ResponseKey],
    settings: RolloutSettings,
    seed: int,
    step: int,
    first: int,
    ended: Ended | None,
    version: int | None,
) -> list[Rollout]:
    """The responses of these keys; the first has place ``first`` in the whole result."""
    limit = settings.max_new_tokens
    width = max(len(prompt.token_ids) for prompt, _ in keys)
    input_ids = torch.full((len(keys), width), student.padding_id, dtype=torch.int64)
    mask = torch.zeros((len(keys), width), dtype=torch.int64)
    for row, (prompt, _) in enumerate(keys):
        length = len(prompt.token_ids)
        input_ids[row, width - length :] = torch.from_numpy(prompt.token_ids.astype(np.int64))
        mask[row, width - length :] = 1
    uniforms = np.stack([rollout_uniforms(seed, step, p.prompt_id, i, limit) for p, i in keys])
    rollouts: dict[int, Rollout] = {}

    def take(rows: list[int], finished: bool = True) -> None:
        for row in rows:
            rollouts[row] = _rollout(keys[row], sampler, row, finished, version)
        if ended is not None:
            ended([(first + row, rollouts[row]) for row in rows])

    terminators = torch.tensor(student.terminators, device=student.device)
    draws = torch.from_numpy(uniforms).to(student.device)
    strings = settings.stop_strings
    by_text = StopStrings(strings, pieces_of(student.tokenizer), len(keys)) if strings else None
    sampler = _Sampler(draws, settings, terminators, student.head.undrawn, by_text, take)
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
            stopping_criteria=StoppingCriteriaList([sampler.closed]),
        )
    cut = sampler.open.nonzero().squeeze(-1).tolist()
    if cut:
        take(cut, finished=False)
    return [rollouts[row] for row in range(len(keys))]


def _rollout(
    key: ResponseKey, sampler: _Sampler, row: int, finished: bool, version: int | None
) -> Rollout:
    """The row's tokens so far. The last one is the terminator, or completes a stop string,
    when the row finished."""
    prompt, index = key
    tokens = sampler.tokens[row, : sampler.drawn].cpu().numpy().astype(np.int32)
    log_probs = sampler.log_probs[row, : sampler.drawn].cpu().numpy().copy()
    if not np.isfinite(log_probs).all():
        raise not_finite(f"rollout {index} of prompt {prompt.prompt_id}")
    masses = sampler.masses[row, : sampler.drawn].cpu().numpy().copy()
    return Rollout(
        prompt,
        index,
        tokens,
        log_probs,
        finished,
        nucleus_mass=masses,
        weights_version=version,
    )
