"""The two tasks, and walks that policies make: s_{t+1} = s_t + a move.

Shapes: R policies, B walks of each, T moves of a walk. The rows of a walk stand together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from student_trainer.study.variance.policy import Policies, log_density

TASKS = ("left", "right")
STARTS = (2.0, -2.0)
TARGETS = (-3.0, 3.0)


@dataclass(frozen=True)
class Walks:
    """Attributes:
    tasks: int64 [R], places in ``TASKS``.
    places: [R, B, T + 1], s_0 to s_T.
    moves: [R, B, T].
    """

    tasks: Tensor
    places: Tensor
    moves: Tensor

    @property
    def features(self) -> Tensor:
        """[R, B * T, 3]: task as -1 or 1, place and share of time before each move."""
        before = self.places[..., :-1]
        horizon = before.shape[-1]
        time = torch.arange(horizon, dtype=before.dtype) / horizon
        sign = signs(self.tasks, before.dtype)[:, None, None]
        return torch.stack([sign.expand_as(before), before, time.expand_as(before)], -1).flatten(
            1, 2
        )

    @property
    def misses(self) -> Tensor:
        """[R]: the mean distance of the last place from the target."""
        return self.distances[..., -1].mean(-1)

    @property
    def distances(self) -> Tensor:
        """[R, B, T]: of the place after each move from the target."""
        after = self.places[..., 1:]
        return (after - torch.tensor(TARGETS, dtype=after.dtype)[self.tasks, None, None]).abs()


@torch.no_grad()
def walk(policies: Policies, tasks: Tensor, noise: Tensor) -> Walks:
    """Lets every policy walk.

    Args:
        tasks: int64 [R], what each walks for.
        noise: [R, B, T], standard normal; a move is mean + sigma * noise.
    """
    horizon = noise.shape[-1]
    place = torch.tensor(STARTS, dtype=noise.dtype)[tasks, None].expand_as(noise[..., 0])
    sign = signs(tasks, noise.dtype)[:, None].expand_as(place)
    places, moves = [place], []
    for t in range(horizon):
        features = torch.stack([sign, place, torch.full_like(place, t / horizon)], -1)
        mean, sigma = policies.gaussian(policies.outputs(policies.hidden(features)))
        moves.append(mean + sigma * noise[..., t])
        place = place + moves[-1]
        places.append(place)
    return Walks(tasks, torch.stack(places, -1), torch.stack(moves, -1))


@torch.no_grad()
def log_probs(policies: Policies, walks: Walks) -> Tensor:
    """log of each move's density under the policies, [R, B, T]."""
    mean, sigma = policies.gaussian(policies.outputs(policies.hidden(walks.features)))
    return log_density(walks.moves, mean.view_as(walks.moves), sigma.view_as(walks.moves))


def signs(tasks: Tensor, dtype: torch.dtype) -> Tensor:
    """The tasks as a network reads them: -1 for left and 1 for right."""
    return tasks.to(dtype) * 2 - 1
