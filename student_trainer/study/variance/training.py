"""Teachers by REINFORCE, and students of one-token signals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from student_trainer.study.variance.estimator import forward, gradients, returns
from student_trainer.study.variance.policy import Policies
from student_trainer.study.variance.settings import VarianceSettings
from student_trainer.study.variance.walk import TASKS, Walks, log_probs, walk

# What a seed's numbers are drawn for, each from a stream of its own.
TEACHERS, TEACHERS_NOISE, STUDENT, STUDENT_NOISE = range(4)


@dataclass(frozen=True)
class Teachers:
    """One policy for each task and seed.

    Attributes:
        policies: first those of the left task, then those of the right one, S of each.
        misses, sigmas: [tasks, S], the mean distance of the last place from the target, and
            the mean standard deviation of the moves, on fresh walks.
    """

    policies: Policies
    misses: Tensor
    sigmas: Tensor


@dataclass(frozen=True)
class Trained:
    """Attributes:
    policies: R students; run r has seed r // G and discount r % G.
    variances: float64 [steps, R], before each update.
    misses: [steps, R], of the walks of each update.
    """

    policies: Policies
    variances: Tensor
    misses: Tensor


def stream(seed: int, purpose: int) -> torch.Generator:
    """The random numbers of a seed for one purpose."""
    return torch.Generator().manual_seed(seed * 4 + purpose)


def noise_of(streams: Sequence[torch.Generator], count: int, horizon: int, copies: int) -> Tensor:
    """Standard normal [S * copies, count, horizon]: the copies of a seed are equal."""
    drawn = [torch.randn(count, horizon, generator=each) for each in streams]
    return torch.stack(drawn).repeat_interleave(copies, 0)


def train_teachers(settings: VarianceSettings, horizon: int, steps: int) -> Teachers:
    """Teachers of walks of ``horizon`` moves: REINFORCE with the reward -|s - target| / T of the
    place after each move, the undiscounted return, and for a baseline the mean of the other walks
    of the batch at the same time."""
    seeds, count = settings.seeds, len(settings.seeds)
    tasks = torch.arange(len(TASKS)).repeat_interleave(count)
    made = [stream(seed, TEACHERS) for seed in seeds]
    policies = Policies.drawn(made * len(TASKS), settings.sigma_floor).learning()
    optimizer = torch.optim.Adam(policies.parameters, lr=settings.teacher_learning_rate)
    streams = [stream(seed, TEACHERS_NOISE) for seed in seeds]
    for _ in range(steps):
        walks = walk(policies, tasks, _teacher_noise(settings, streams, horizon))
        read = forward(policies, walks)
        _update(policies, optimizer, gradients(policies, read, _costs(walks), 1).parameters)
    walks = walk(policies, tasks, _teacher_noise(settings, streams, horizon))
    _, sigma = policies.gaussian(forward(policies, walks).outputs.detach())
    return Teachers(
        policies,
        walks.misses.view(len(TASKS), count),
        sigma.mean(-1).view(len(TASKS), count),
    )


def _teacher_noise(
    settings: VarianceSettings, streams: Sequence[torch.Generator], horizon: int
) -> Tensor:
    """[tasks * S, B, T]: the two teachers of a seed see the same."""
    return noise_of(streams, settings.batch, horizon, 1).repeat(len(TASKS), 1, 1)


def _costs(walks: Walks) -> Tensor:
    """[R, B, T]: what lies ahead of each move, less the mean of the other walks."""
    horizon, count = walks.moves.shape[-1], walks.moves.shape[1]
    ahead = returns(walks.distances / horizon, [1.0] * len(walks.moves))
    return (ahead - ahead.mean(1, keepdim=True)) * (count / (count - 1))


def train_students(
    settings: VarianceSettings,
    teachers: Teachers,
    gammas: Sequence[float],
    horizon: int,
    steps: int,
    *,
    learn: bool = True,
) -> Trained:
    """A student for each seed and discount; odd updates walk left, even ones right.

    The students of a seed begin alike and see the same noise.

    Args:
        learn: False measures the variance of the untrained students at every step.
    """
    copies = len(gammas)
    seeds = torch.arange(len(settings.seeds)).repeat_interleave(copies)
    first = Policies.drawn([stream(s, STUDENT) for s in settings.seeds], settings.sigma_floor)
    policies = first.at(seeds).learning()
    asked = [teachers.policies.at(seeds + task * len(settings.seeds)) for task in range(len(TASKS))]
    streams = [stream(seed, STUDENT_NOISE) for seed in settings.seeds]
    optimizer = torch.optim.Adam(policies.parameters, lr=settings.learning_rate)
    of_run = list(gammas) * len(settings.seeds)
    variances, misses = [], []
    for step in range(steps):
        task = step % len(TASKS)
        noise = noise_of(streams, settings.batch, horizon, copies)
        walks = walk(policies, torch.full_like(seeds, task), noise)
        read = forward(policies, walks)
        rewards = read.log_probs.detach() - log_probs(asked[task], walks)
        found = gradients(policies, read, returns(rewards, of_run), settings.micro_batches)
        variances.append(found.variance)
        misses.append(walks.misses)
        if learn:
            _update(policies, optimizer, found.parameters)
    return Trained(policies, torch.stack(variances), torch.stack(misses))


def _update(policies: Policies, optimizer: torch.optim.Adam, grads: Sequence[Tensor]) -> None:
    for parameter, grad in zip(policies.parameters, grads, strict=True):
        parameter.grad = grad
    optimizer.step()
