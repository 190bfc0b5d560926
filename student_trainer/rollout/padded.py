"""Responses in padded batches through transformers' ``generate``: a batch is written to its longest
response before the next begins. For students without continuous batching
(rollout/slots/supported.py).

Every token is drawn in rollout/drawing.py; ``generate`` keeps the cache and stops. The model's
own generation settings (temperature, top-k, penalties) do not apply.
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

from student_trainer.rollout.base import Rollout
from student_trainer.rollout.drawing import Drawing
from student_trainer.rollout.engine import ResponseKey
from student_trainer.student.model import Student

# Takes rollouts as they end, as (place in the result, rollout), in ascending order of places.
Take = Callable[[list[tuple[int, Rollout]]], None]


@torch.no_grad()
def write_padded(
    student: Student, keys: Sequence[ResponseKey], drawing: Drawing, take: Take
) -> None:
    """Writes the responses of ``keys``, as many together as ``drawing`` has lines."""
    for first in range(0, len(keys), drawing.lines):
        _batch(student, keys[first : first + drawing.lines], drawing, first, take)


def _batch(
    student: Student, keys: Sequence[ResponseKey], drawing: Drawing, first: int, take: Take
) -> None:
    """The responses of these keys; the first has place ``first`` in the whole result."""
    width = max(len(key.prompt.token_ids) for key in keys)
    input_ids = torch.full((len(keys), width), student.padding_id, dtype=torch.int64)
    mask = torch.zeros((len(keys), width), dtype=torch.int64)
    for row, key in enumerate(keys):
        ids = key.prompt.token_ids
        input_ids[row, width - len(ids) :] = torch.from_numpy(ids.astype(np.int64))
        mask[row, width - len(ids) :] = 1
        drawing.begin(row, key)
    sampler = _Sampler(drawing, len(keys), first, take, student.padding_id)
    configuration = GenerationConfig(
        do_sample=False,
        max_new_tokens=drawing.settings.max_new_tokens,
        eos_token_id=list(student.terminators),
        pad_token_id=student.padding_id,
        use_cache=True,
    )
    model = student.causal_model
    with _plain_generation(model):
        model.generate(
            input_ids=input_ids.to(student.device),
            attention_mask=mask.to(student.device),
            generation_config=configuration,
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=StoppingCriteriaList([sampler.closed]),
        )


class _Sampler(LogitsProcessor):  # type: ignore[misc]
    """Draws the token of each open row, makes it the only possible one, and takes ended rows."""

    def __init__(self, drawing: Drawing, rows: int, first: int, take: Take, padding: int) -> None:
        self._drawing = drawing
        self._open = list(range(rows))
        self._rows = rows
        self._first = first
        self._take = take
        self._padding = padding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = self._open
        tokens = torch.full((len(scores),), self._padding, device=scores.device)
        drawn = self._drawing.draw(rows, scores[rows])
        tokens[rows] = drawn.tokens
        finished, over = set(drawn.finished), set(drawn.over)
        ended = [
            (self._first + row, self._drawing.take(row, finished=nth in finished))
            for nth, row in enumerate(rows)
            if nth in over
        ]
        self._open = [row for nth, row in enumerate(rows) if nth not in over]
        if ended:
            self._take(ended)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(-1, tokens.unsqueeze(-1), 0.0)

    def closed(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """bool [B]: rows that have ended, by a token or by a text; a stopping criterion."""
        closed = torch.ones(self._rows, dtype=torch.bool, device=input_ids.device)
        closed[self._open] = False
        return closed


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Hides the model's own generation settings, which ``generate`` would apply."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
