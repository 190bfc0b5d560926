"""Which runs a comparison has, in their order, and the settings of each. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.study.compare.settings import (
    CompareSettings,
    arm_values,
    merged,
    train_config,
)

Phase = Literal["teacher", "grid", "counted"]


@dataclass(frozen=True)
class Planned:
    """One run.

    Attributes:
        arm: its name; of the teacher's evaluation, that of the reference.
        model: the folder of the model that is trained; in the phase ``teacher`` it is the
            teacher, which is evaluated and not trained.
        rate: the learning rate.
    """

    phase: Phase
    arm: str
    seed: int
    model: str
    rate: float

    @property
    def name(self) -> str:
        """Of its files."""
        if self.phase == "teacher":
            return "teacher"
        rate = f"-{self.rate:g}" if self.phase == "grid" else ""
        return f"{self.phase}-{self.arm}{rate}-seed-{self.seed}"

    def described(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}


def teacher_run(settings: CompareSettings) -> Planned:
    """The evaluation of the teacher on the prompts of the reference's first seed."""
    seed = settings.arms[settings.reference].seeds[0]
    return Planned(
        "teacher", settings.reference, seed, settings.models.teacher, settings.grid.rates[0]
    )


def grid_runs(settings: CompareSettings) -> list[Planned]:
    """Every arm at every learning rate, arm after arm."""
    return [
        Planned("grid", arm, seed, settings.student_of(seed), rate)
        for arm in settings.arms
        for rate in settings.grid.rates
        for seed in settings.grid.seeds
    ]


def counted_runs(settings: CompareSettings, rates: Mapping[str, float]) -> list[Planned]:
    """The counted runs at the chosen learning rates: all arms of a seed before the next seed, so
    that arms have as many runs as each other wherever it is stopped."""
    seeds = sorted({seed for arm in settings.arms.values() for seed in arm.seeds})
    return [
        Planned("counted", name, seed, settings.student_of(seed), rates[name])
        for seed in seeds
        for name, arm in settings.arms.items()
        if seed in arm.seeds
    ]


def same_run(before: CompareSettings, after: CompareSettings, planned: Planned) -> bool:
    """Whether a run has the same settings, evaluations and measurements in both comparisons."""
    nowhere = Path(), Path("unset"), "unset:1"
    return (
        config_of_run(before, planned, *nowhere) == config_of_run(after, planned, *nowhere)
        and as_evaluated(before, planned) == as_evaluated(after, planned)
        and before.models.teacher == after.models.teacher
        and before.noise == after.noise
    )


def as_evaluated(settings: CompareSettings, planned: Planned) -> RolloutSettings:
    """The rollouts by which the run of any arm is evaluated: those of ``base``."""
    nowhere = {"run": {"output_dir": "unset"}, "student": {"model": planned.model}}
    return train_config(merged(settings.base, nowhere)).rollout


def config_of_run(
    settings: CompareSettings, planned: Planned, models: Path, folder: Path, address: str
) -> TrainConfig:
    """The trainer's settings of a run.

    Args:
        models: the folder of the models.
        folder: the run's directory.
        address: of the teacher's service.
    """
    values = arm_values(settings, planned.arm)
    if planned.phase == "grid":
        values = merged(values, settings.grid.changes)
    decided = {
        "run": {"name": settings.name, "output_dir": str(folder), "seed": planned.seed},
        "student": {"model": str(models / planned.model)},
        "teacher": {"address": address},
        "optimizer": {"lr": planned.rate},
    }
    return train_config(merged(values, decided))
