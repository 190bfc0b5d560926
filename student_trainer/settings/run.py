"""Settings of what a run is called, keeps, reports and publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from student_trainer.settings.base import Count, PathOrName, Positive, PositiveInt, Settings
from student_trainer.trackers import check_names

REPOSITORY = r"^[\w.-]+/[\w.-]+$"


class RunSettings(Settings):
    """The run: its name, directory, seed and length."""

    name: Annotated[str, Field(min_length=1, max_length=256)] = Field(
        default="student",
        description="Name under which the teacher service counts the run's share and quota; "
        "where the service wants credentials, the run that they belong to.",
    )
    output_dir: Path = Field(description="Directory of everything that the run writes.")
    seed: Count = Field(
        default=0, description="Seed of the rollouts, the order of prompts and dropout."
    )
    steps: PositiveInt = Field(
        default=400, description="Steps to train for; a step is one batch of rollouts."
    )


# Begins the names of held-out values, as `checkpoint.best` and trackers have them.
HELD_OUT = "held_out/"


class CheckpointSettings(Settings):
    """What is saved, and how a run resumes."""

    every: PositiveInt = Field(
        default=20, description="Steps between checkpoints; the last step always has one."
    )
    keep: PositiveInt = Field(default=2, description="Checkpoints that are kept, the newest ones.")
    best: str | None = Field(
        default=None,
        description="A metric of `metrics.jsonl`: the checkpoint with its best mean over the "
        "last `checkpoint.every` steps is kept too. Or, with `evaluation.every`, "
        "`held_out/reverse_kl` or another held-out value: then the best evaluation has a "
        "checkpoint, which is kept. Unset, none is.",
    )
    best_goal: Literal["min", "max"] = Field(
        default="min", description="Whether a low or a high value of that metric is better."
    )
    resume: PathOrName = Field(
        default="auto",
        description="`auto` resumes from the newest undamaged checkpoint of the run's "
        "directory, a path from that checkpoint, and `never` refuses a directory "
        "that holds a run.",
    )
    allow_changed: tuple[str, ...] = Field(
        default=(),
        description="Keys whose values may differ from the checkpoint's when a run resumes; "
        "`modules`, that files of your own classes (`loss.kind`) may.",
    )

    @property
    def best_held_out(self) -> str | None:
        """The held-out value that ``best`` names; None where it names none."""
        best = self.best or ""
        return best.removeprefix(HELD_OUT) if best.startswith(HELD_OUT) else None


class ReportSettings(Settings):
    """What is made of a run's metrics."""

    html: bool = Field(default=True, description="Write `report.html` at the end.")
    metric_rows: Count = Field(
        default=64,
        description="Rows of each update whose metrics over the whole vocabulary are computed; "
        "0 turns these metrics off.",
    )
    rollouts_every: Count = Field(
        default=50,
        description="Steps between those of which responses are kept under `rollouts/`, token by "
        "token; the last step is one. 0, none are kept.",
    )
    rollouts: PositiveInt = Field(
        default=8,
        description="Responses that are kept of such a step: those with the largest mean loss.",
    )


class TrackingSettings(Settings):
    """Experiment trackers (docs/training.md)."""

    trackers: tuple[str, ...] = Field(
        default=(),
        description="Any of `tensorboard`, `trackio`, `wandb` and `mlflow`; none unless named.",
    )
    project: Annotated[str, Field(min_length=1)] = Field(
        default="lsm-distill",
        description="Project that the run belongs to; for MLflow, the experiment.",
    )

    @field_validator("trackers")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_names(value)
        return value


class HubSettings(Settings):
    """Where the final model is pushed."""

    repo: Annotated[str, Field(pattern=REPOSITORY)] | None = Field(
        default=None,
        description="`OWNER/NAME` that the final model is pushed to; unset, it is not pushed.",
    )
    private: bool = Field(
        default=True, description="Whether a repository that does not exist yet is made private."
    )


class DistributedSettings(Settings):
    """The ranks of a run, where torchrun starts several; one process reads nothing of it."""

    timeout: Positive = Field(
        default=1800.0,
        description="Seconds that ranks wait for each other at most, also while rank 0 evaluates.",
    )
    reshard: Literal["after_update", "after_pass"] = Field(
        default="after_update",
        description="When a rank frees the parameters that it has gathered: after an update's "
        "last backward pass, or after each pass, which takes less memory and gathers them again "
        "for the next.",
    )
