"""What can be chosen of the experiment."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

from teacher_proto.errors import ConfigurationError

# The least number of updates of which "late" means a quarter.
LEAST_STEPS = 8


@dataclass(frozen=True)
class VarianceSettings:
    """The experiment's settings; those of the paper are the default where it has them.

    Attributes:
        seeds: of networks and walks. gammas: discounts, ascending.
        horizon: steps of a walk, T. steps: updates of a student.
        horizons: the walks' lengths in the sweep, ascending, two or more.
        horizon_steps, horizon_teacher_steps: updates of a student and of a teacher in the sweep.
        start_batches: batches of each task whose variances are averaged in the sweep for an
            untrained student.
        teacher_steps: updates of a teacher.
        batch, micro_batches: walks in an update, B, and the parts of it whose gradients are
            compared, M.
        learning_rate, teacher_learning_rate: of Adam.
        sigma_floor: the least standard deviation of a policy.
    """

    seeds: tuple[int, ...] = (42, 43, 2026)
    gammas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    horizon: int = 20
    steps: int = 2000
    horizons: tuple[int, ...] = (5, 10, 20, 40, 80)
    horizon_steps: int = 400
    horizon_teacher_steps: int = 500
    start_batches: int = 16
    teacher_steps: int = 1500
    batch: int = 64
    micro_batches: int = 8
    learning_rate: float = 1e-3
    teacher_learning_rate: float = 3e-3
    sigma_floor: float = 0.05

    def __post_init__(self) -> None:
        """Raises ConfigurationError for values that the experiment cannot have."""
        for name in ("seeds", "gammas", "horizons"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise _wrong(name, f"{values} holds a value twice", "give each once")
        if not self.seeds or min(self.seeds) < 0:
            raise _wrong("seeds", f"{self.seeds} is no list of seeds", "give numbers from 0 on")
        ascending = all(a < b for a, b in itertools.pairwise(self.gammas))
        if len(self.gammas) < 2 or not ascending or self.gammas[0] < 0 or self.gammas[-1] > 1:
            raise _wrong(
                "gammas", f"{self.gammas} is no ascending list", "give two or more from 0 to 1"
            )
        if self.horizon < 1:
            raise _wrong("horizon", f"a walk of {self.horizon} moves is none", "give 1 or more")
        if (
            len(self.horizons) < 2
            or self.horizons[0] < 1
            or list(self.horizons) != sorted(self.horizons)
        ):
            raise _wrong(
                "horizons",
                f"{self.horizons} is no ascending list of lengths",
                "give two or more, each at least 1",
            )
        for name in ("steps", "horizon_steps"):
            if getattr(self, name) < LEAST_STEPS:
                raise _wrong(
                    name,
                    f"{getattr(self, name)} updates have no late quarter",
                    f"give at least {LEAST_STEPS}",
                )
        for name in ("teacher_steps", "horizon_teacher_steps", "start_batches"):
            if getattr(self, name) < 1:
                raise _wrong(name, f"it is {getattr(self, name)}", "give at least 1")
        if self.micro_batches < 2 or self.batch < 2 or self.batch % self.micro_batches:
            raise _wrong(
                "micro_batches",
                f"{self.batch} walks cannot be cut into {self.micro_batches} equal parts",
                "give a divisor of the batch that is at least 2",
            )
        for name in ("learning_rate", "teacher_learning_rate", "sigma_floor"):
            if not 0 < getattr(self, name) < 10:
                raise _wrong(name, f"{getattr(self, name)} is not in (0, 10)", "give 0.001 or so")

    @property
    def sweep_gammas(self) -> tuple[float, float]:
        """The two discounts of the sweep: the lowest and the highest."""
        return self.gammas[0], self.gammas[-1]

    def described(self) -> dict[str, Any]:
        return asdict(self)


def _wrong(name: str, what: str, fix: str) -> ConfigurationError:
    return ConfigurationError(what, where=f"--{name.replace('_', '-')}", fix=fix)
