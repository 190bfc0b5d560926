"""What a comparison is: its models, what all arms share, and what each arm changes."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings import load_settings
from teacher_proto.program.settings_types import Count, Positive, PositiveInt, Settings

from student_trainer.settings.train import TrainConfig

NAME = r"^[a-z0-9][a-z0-9.-]*$"
# What a run decides itself, so that neither `base` nor an arm has it.
OF_RUNS = ("run.seed", "run.output_dir", "student.model", "teacher.address", "optimizer.lr")
# What all arms share.
OF_ALL = ("run", "data", "tasks", "evaluation", "verification", "checkpoint")
Name = Annotated[str, Field(pattern=NAME)]


class ModelNames(Settings):
    """Folders below the folder of models.

    Attributes:
        students: seed s begins with the student at place (s - 1) modulo their number.
    """

    teacher: Annotated[str, Field(min_length=1)]
    students: Annotated[tuple[str, ...], Field(min_length=1)]


class GridSettings(Settings):
    """The runs that choose a learning rate for each arm.

    Attributes:
        rates: learning rates, ascending, the same for every arm.
        seeds: of these runs; none of them is counted.
        value: the held-out value after the last step that decides; ties are decided by the lower
            ``reverse_kl``, and then by the lower rate.
        goal: whether a high or a low value is better.
        changes: settings that these runs have besides.
    """

    rates: Annotated[tuple[Positive, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)]
    value: str
    goal: Literal["max", "min"]
    changes: dict[str, Any] = Field(default_factory=dict)


class NoiseSettings(Settings):
    """Every how many steps the noise of the gradient is measured, and in how many parts the
    responses of an update are split for it."""

    every: PositiveInt
    parts: Annotated[int, Field(ge=2)] = 8


class ArmSettings(Settings):
    """One arm.

    Attributes:
        about: what it is, in a few words.
        seeds: of its counted runs.
        changes: settings of the trainer that it has in place of those of ``base``.
    """

    about: Annotated[str, Field(min_length=1)]
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)]
    changes: dict[str, Any] = Field(default_factory=dict)


class CompareSettings(Settings):
    """A comparison.

    Attributes:
        name: of the files with its results.
        base: settings of the trainer that every arm begins with. Its ``rollout`` is also how every
            arm is evaluated, whatever the arm itself draws.
        reference: the arm that the others are compared with.
        pairs: further arms that are compared, each a name and that of its reference. They decide
            of the report alone, and are not in the digest.
        values: held-out values, and figures of a run, that the table has, in its order.
    """

    name: Name
    models: ModelNames
    reference: str
    pairs: tuple[tuple[str, str], ...] = ()
    grid: GridSettings
    noise: NoiseSettings
    values: tuple[str, ...]
    base: dict[str, Any]
    arms: dict[Name, ArmSettings]

    @model_validator(mode="after")
    def _fits_together(self) -> CompareSettings:
        for name in (self.reference, *itertools.chain.from_iterable(self.pairs)):
            if name not in self.arms:
                raise ValueError(f"{name!r} is none of the arms ({', '.join(self.arms)})")
        listed = {"grid.rates": self.grid.rates, "grid.seeds": self.grid.seeds}
        listed |= {f"arms.{name}.seeds": arm.seeds for name, arm in self.arms.items()}
        for key, values in listed.items():
            if len(set(values)) != len(values):
                raise ValueError(f"{key} holds a value twice: {list(values)}")
        counted = {seed for arm in self.arms.values() for seed in arm.seeds}
        if both := sorted(counted & set(self.grid.seeds)):
            raise ValueError(
                f"seeds {both} are counted and in the grid: a learning rate must not be chosen on "
                "runs that are counted"
            )
        return self

    @model_validator(mode="after")
    def _changes_what_it_may(self) -> CompareSettings:
        for where, values in (
            ("base", self.base),
            ("grid.changes", self.grid.changes),
            *((f"arms.{name}.changes", arm.changes) for name, arm in self.arms.items()),
        ):
            if own := [key for key in OF_RUNS if _has(values, key)]:
                raise ValueError(f"{where} has {own[0]}, which each run has from its plan")
            if where.startswith("arms.") and (own := [key for key in OF_ALL if key in values]):
                raise ValueError(f"{where} has {own[0]}, which all arms share: set it in base")
        for name, arm in self.arms.items():
            if both := _both_change(self.grid.changes, arm.changes):
                raise ValueError(
                    f"grid.changes has {both[0]}, and so has arms.{name}.changes, whose value no "
                    "run of the grid would have: leave it out of one of them"
                )
        return self

    @property
    def digest(self) -> str:
        """sha256 of everything that it decides, hexadecimal; ``pairs`` aside."""
        text = json.dumps(self.model_dump(mode="json", exclude={"pairs"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def student_of(self, seed: int) -> str:
        """The student that a seed begins with."""
        return self.models.students[(seed - 1) % len(self.models.students)]


def read_settings(path: Path) -> CompareSettings:
    """The comparison of a TOML file, every arm of which is a configuration of the trainer.

    Raises:
        ConfigurationError: a value is wrong; of an arm, its name stands in ``where``.
    """
    settings = load_settings(CompareSettings, [path]).settings
    for name in settings.arms:
        values = arm_values(settings, name)
        try:
            _check(settings, train_config(values))
            _check(settings, train_config(merged(values, settings.grid.changes)))
        except ConfigurationError as error:
            raise ConfigurationError(
                error.what, where=f"arms.{name}: {error.where}", fix=error.fix
            ) from error
    return settings


def _check(settings: CompareSettings, config: TrainConfig) -> None:
    """Raises ConfigurationError where an arm's run could not be measured as the others are."""
    base = train_config(_placed(settings.base)).rollout
    own, shared = (r.prompts_per_step * r.group_size for r in (config.rollout, base))
    if own != shared:
        raise ConfigurationError(
            f"its steps have {own} responses, and those of the others {shared}",
            where="rollout",
            fix="give every arm as many: prompts_per_step * group_size",
        )
    if own // config.optimizer.updates_per_batch % settings.noise.parts:
        raise ConfigurationError(
            f"the responses of an update cannot be split into {settings.noise.parts} equal parts",
            where="noise.parts",
            fix="give a divisor of the responses of a step over optimizer.updates_per_batch",
        )
    if not config.evaluation.every or config.evaluation.patience is not None:
        raise ConfigurationError(
            "a run has to be evaluated after its last step, which is the same for all",
            where="evaluation",
            fix="set evaluation.every above 0, and no evaluation.patience",
        )


def _has(values: Mapping[str, Any], key: str) -> bool:
    """Whether nested values have a dotted key."""
    first, _, rest = key.partition(".")
    inner = values.get(first)
    return first in values and (not rest or (isinstance(inner, Mapping) and _has(inner, rest)))


def _both_change(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Dotted keys that both of two nested changes set."""
    found = []
    for key in sorted(one.keys() & other.keys()):
        if isinstance(one[key], Mapping) and isinstance(other[key], Mapping):
            found += [f"{key}.{inner}" for inner in _both_change(one[key], other[key])]
        else:
            found.append(key)
    return found


def arm_values(settings: CompareSettings, arm: str) -> dict[str, Any]:
    """The settings of the trainer of an arm, but for what a run decides: its learning rate, seed,
    models and directory. Placeholders stand for the last three."""
    return _placed(merged(settings.base, settings.arms[arm].changes))


def _placed(values: Mapping[str, Any]) -> dict[str, Any]:
    return merged(values, {"run": {"output_dir": "unset"}, "student": {"model": "unset"}})


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with changes: tables merge, everything else is replaced."""
    found = dict(values)
    for key, change in changes.items():
        before = found.get(key)
        both = isinstance(change, Mapping) and isinstance(before, Mapping)
        found[key] = merged(before, change) if both else change  # type: ignore[arg-type]
    return found


def train_config(values: Mapping[str, Any]) -> TrainConfig:
    """The trainer's settings of these values alone: no environment variable changes them."""
    return load_settings(TrainConfig, values=values).settings
