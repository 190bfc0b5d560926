"""Settings of what a run is called, keeps, reports and publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from student_trainer.settings.base import Count, PositiveInt, Settings
from student_trainer.trackers import check_names

REPOSITORY = r"^[\w.-]+/[\w.-]+$"


class RunSettings(Settings):
    name: Annotated[str, Field(min_length=1, max_length=256)] = Field(
        default="student", description="name under which the teacher service counts the run's share"
    )
    output_dir: Path = Field(description="directory of everything that the run writes")
    seed: Count = Field(
        default=0, description="seed of rollouts, of the order of prompts and of dropout"
    )
    steps: PositiveInt = Field(default=400, description="steps (batches of rollouts) to train for")


class CheckpointSettings(Settings):
    every: PositiveInt = Field(
        default=20, description="steps between checkpoints; the last step always has one"
    )
    keep: PositiveInt = Field(default=2, description="how many of the newest checkpoints are kept")
    best: str | None = Field(
        default=None,
        description="metric of metrics.jsonl whose best checkpoint is kept too, by its mean over "
        "the last `every` steps; if unset, none is",
    )
    best_goal: Literal["min", "max"] = Field(
        default="min", description="whether a low or a high value of best is better"
    )
    resume: str = Field(
        default="auto",
        description="auto (the newest undamaged one of output_dir), never, or a checkpoint's path",
    )
    allow_changed: tuple[str, ...] = Field(
        default=(), description="keys that may differ from the checkpoint's when resuming"
    )


class ReportSettings(Settings):
    html: bool = Field(default=True, description="write report.html and plots at the end")
    metric_rows: Count = Field(
        default=64,
        description="rows per step for metrics over the whole vocabulary; 0 turns them off",
    )


class TrackingSettings(Settings):
    trackers: tuple[str, ...] = Field(
        default=(), description="any of tensorboard, trackio, wandb, mlflow"
    )
    project: Annotated[str, Field(min_length=1)] = Field(
        default="lsm-distill", description="project (MLflow: experiment) of the run"
    )

    @field_validator("trackers")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_names(value)
        return value


class HubSettings(Settings):
    repo: Annotated[str, Field(pattern=REPOSITORY)] | None = Field(
        default=None,
        description="OWNER/NAME to push the final model to; if unset, nothing is pushed",
    )
    private: bool = Field(default=True, description="whether a new repository is private")
