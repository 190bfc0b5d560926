"""Supervised training of a model of the games on transcripts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from student_trainer.study.games.transcripts import Segment, play
from student_trainer.study.lab.training import Batch, loss_of
from student_trainer.tasks.base import Row
from student_trainer.tasks.textworld import TextWorldTask

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Schedule:
    """What a model is trained on, by steps of the optimiser alone.

    Attributes:
        steps: of the whole schedule, whose learning rate rises to ``rate`` in ``warmup`` steps
            and falls to 0 in a straight line.
        tokens: of a step, at least; padding does not count.
        plays: transcripts of each game.
        slip: probability that a command of a transcript is drawn at random.
        told: weight of the game's own words as targets, beside 1 of right commands.
    """

    steps: int
    warmup: int = 50
    rate: float = 3e-3
    weight_decay: float = 0.01
    tokens: int = 1536
    plays: int = 3
    slip: float = 0.3
    told: float = 0.1

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, of which the first is 0."""
        rise = (step + 1) / self.warmup
        fall = (self.steps - step) / max(1, self.steps - self.warmup)
        return self.rate * min(1.0, rise, fall)


@dataclass(frozen=True)
class Example:
    """A transcript in tokens: ids int64 [n], and weights float32 [n] of each as a target."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]


def transcripts(
    task: TextWorldTask, rows: Sequence[Row], plays: int, slip: float
) -> list[list[Segment]]:
    """Transcripts of each row's game; they depend on the arguments alone."""
    return [
        play(task, row, random.Random(f"games {row['game']} {number} 0"), slip)
        for row in rows
        for number in range(plays)
    ]


def example(
    segments: Sequence[Segment], tokenizer: PreTrainedTokenizerFast, told: float
) -> Example:
    """A transcript in tokens: each segment is encoded by itself, as it is in a run."""
    ids: list[int] = []
    weights: list[float] = []
    for segment in segments:
        found = tokenizer.encode(segment.text, add_special_tokens=False)
        found += [tokenizer.eos_token_id] if segment.command else []
        ids += found
        weights += [segment.weight if segment.command else told] * len(found)
    return Example(np.array(ids, np.int64), np.array(weights, np.float32))


def batches(
    every: Sequence[Example], schedule: Schedule, padding: int, seed: int
) -> Iterator[Batch]:
    """The rows of each step: the examples in an order that is drawn anew each time round."""
    draw = random.Random(f"batches {seed}")
    left: list[Example] = []
    for _ in range(schedule.steps):
        chosen: list[Example] = []
        while sum(len(one.ids) for one in chosen) < schedule.tokens:
            if not left:
                left = draw.sample(every, len(every))
            chosen.append(left.pop())
        width = max(len(one.ids) for one in chosen)
        ids = np.full((len(chosen), width), padding, np.int64)
        weights = np.zeros((len(chosen), width), np.float32)
        for place, one in enumerate(chosen):
            ids[place, : len(one.ids)] = one.ids
            weights[place, : len(one.ids)] = one.weights
        yield Batch(ids, weights)


def train(
    network: LlamaForCausalLM, rows: Iterator[Batch], schedule: Schedule
) -> Iterator[tuple[int, float]]:
    """Trains the network, by AdamW.

    Yields:
        After each update: the updates that were made, and the mean loss, nats.
    """
    optimizer = torch.optim.AdamW(
        network.parameters(), weight_decay=schedule.weight_decay, betas=(0.9, 0.98), fused=True
    )
    for step, batch in enumerate(rows):
        network.train()
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        loss = loss_of(network, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        yield step + 1, float(loss.detach())
