"""Supervised training of a laboratory model on responses that are written on the spot."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from student_trainer.study.lab.language.task import LabTask
from student_trainer.study.lab.language.tokenizer import WordIds

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Schedule:
    """What a model is trained on, by steps of the optimiser alone.

    Attributes:
        steps: of the whole schedule, whose learning rate is a cosine from ``rate`` to 0 after
            ``warmup`` steps.
        tokens: of a step, at least; padding does not count.
        items: numbers of items of a prompt, fewest and most. All prompts of a step have one
            number. The most grows from the fewest in the first ``growth`` of the steps.
        slip: probability that a response has a wrong step.
        decided: weight of the words that the rules decide, beside 1 of the others.
    """

    steps: int
    items: tuple[int, int]
    growth: float = 0.3
    warmup: int = 50
    rate: float = 3e-3
    weight_decay: float = 0.01
    tokens: int = 1536
    slip: float = 0.15
    decided: float = 3.0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, of which the first is 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * 0.5 * (1 + math.cos(math.pi * progress))

    def most_items(self, step: int) -> int:
        """Of the prompts of a step."""
        fewest, most = self.items
        progress = min(1.0, (step + 1) / max(1.0, self.growth * self.steps))
        return fewest + round((most - fewest) * progress)


@dataclass(frozen=True)
class Batch:
    """Padded rows of one step: ids int64 [B, T], and weights float32 [B, T] of each id as a
    target; 0 of the first id, of prompts, padding and words that are wrong on purpose."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]


def batch(task: LabTask, ids: WordIds, schedule: Schedule, step: int, seed: int) -> Batch:
    """The rows of a step; they depend on the arguments alone."""
    draw = random.Random(f"{task.name} step {step} seed {seed}")
    items = draw.randint(schedule.items[0], schedule.most_items(step))
    rows: list[tuple[list[int], list[float]]] = []
    total = 0
    while total < schedule.tokens:
        rows.append(_row(task, ids, schedule, draw, items))
        total += len(rows[-1][0])
    width = max(len(tokens) for tokens, _ in rows)
    padded = np.full((len(rows), width), ids.padding, np.int64)
    weights = np.zeros((len(rows), width), np.float32)
    for place, (tokens, weight) in enumerate(rows):
        padded[place, : len(tokens)] = tokens
        weights[place, : len(tokens)] = weight
    return Batch(padded, weights)


def _row(
    task: LabTask, ids: WordIds, schedule: Schedule, draw: random.Random, items: int
) -> tuple[list[int], list[float]]:
    row = task.draw_row(draw, items)
    response = task.write(row, draw, decided=schedule.decided, slip=schedule.slip)
    tokens = ids.of_text(row["prompt"])
    weights = [0.0] * len(tokens)
    for word, weight in zip(response.words, response.weights, strict=True):
        found = ids.of_word(" " + word)
        tokens += found
        weights += [weight] * len(found)
    return [*tokens, ids.end], [*weights, schedule.decided]


def train(
    network: LlamaForCausalLM, task: LabTask, ids: WordIds, schedule: Schedule, seed: int
) -> Iterator[tuple[int, float]]:
    """Trains the network, by AdamW.

    Yields:
        After each update: the updates that were made, and the mean loss of its words, nats.
    """
    optimizer = torch.optim.AdamW(
        network.parameters(), weight_decay=schedule.weight_decay, betas=(0.9, 0.98), fused=True
    )
    for step in range(schedule.steps):
        network.train()
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        loss = loss_of(network, batch(task, ids, schedule, step, seed))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        yield step + 1, float(loss.detach())


def loss_of(network: LlamaForCausalLM, rows: Batch) -> torch.Tensor:
    """The weighted mean of the negative log-probabilities of the targets, nats."""
    ids, weights = torch.from_numpy(rows.ids), torch.from_numpy(rows.weights)[:, 1:]
    hidden = network.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    counted = weights > 0
    logits = network.lm_head(hidden[counted])
    losses = cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    kept = weights[counted]
    return (losses * kept).sum() / kept.sum()
