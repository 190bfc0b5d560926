"""Which responses of a step the student writes, which are answers of the data, and which rank
has which of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from teacher_proto.errors import ConfigurationError

from student_trainer.distributed.world import ALONE, World
from student_trainer.settings.rollout import MixingSettings, RolloutSettings


@dataclass(frozen=True)
class StepPlan:
    """The places of a step: P groups of G. A group holds the student's responses to one prompt, or
    answers to G prompts.

    Attributes:
        groups, size: P and G.
        answered: the groups of answers, ascending.
        answers_before: answers that the steps before have.
    """

    groups: int
    size: int
    answered: tuple[int, ...] = ()
    answers_before: int = 0

    @property
    def own_prompts(self) -> int:
        """How many prompts the student answers."""
        return self.groups - len(self.answered)

    @property
    def own_places(self) -> list[int]:
        answered = frozenset(self.answered)
        return list(self._places(g for g in range(self.groups) if g not in answered))

    @property
    def answer_places(self) -> list[int]:
        return list(self._places(iter(self.answered)))

    def _places(self, groups: Iterator[int]) -> Iterator[int]:
        return (g * self.size + offset for g in groups for offset in range(self.size))


def step_plan(rollout: RolloutSettings, mixing: MixingSettings, step: int) -> StepPlan:
    """The plan of a step, which depends on its number alone. The groups of answers are spread
    evenly, so that each of several updates on a step has its part of them."""
    groups, size = rollout.prompts_per_step, rollout.group_size
    before = mixing.groups_until(step - 1, groups)
    count = mixing.groups_until(step, groups) - before
    answered = tuple((2 * nth + 1) * groups // (2 * count) for nth in range(count))
    return StepPlan(groups, size, answered, before * size)


def share_of(groups: int, updates: int, world: World = ALONE) -> tuple[int, ...]:
    """The groups of a step that are a rank's own, ascending: of the groups of each update the
    ranks have equal slices, in their order.

    Args:
        groups: of the step; with several ranks a multiple of ``updates`` times their number.
    """
    if not world.several:
        return tuple(range(groups))
    each = groups // (updates * world.size)
    firsts = (update * groups // updates + world.rank * each for update in range(updates))
    return tuple(group for first in firsts for group in range(first, first + each))


def check_share(groups: int, updates: int, ranks: int) -> None:
    """Checks that ranks can have equal slices of each update's groups.

    Raises:
        ConfigurationError: the groups of a step are no multiple of ``updates * ranks``.
    """
    if groups % (ranks * updates):
        raise ConfigurationError(
            f"{ranks} ranks cannot share the {groups} prompts of a step: {ranks} times "
            f"optimizer.updates_per_batch ({updates}) does not divide them",
            where="rollout.prompts_per_step",
            fix=f"set a multiple of {ranks * updates}, or start another number of ranks",
        )
