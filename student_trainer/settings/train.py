"""Settings of a training run (docs/training.md). Lengths in tokens, times in seconds.

Defaults follow arXiv 2603.25562 where it states a value (K = 32, eight rollouts
of sixteen prompts, temperature 1, top-p 0.9, AdamW at 2e-6 with weight decay
0.01, gradient norm clipped to 1).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from student_trainer.losses import LsmLoss
from student_trainer.settings.base import Count, NonNegative, Positive, PositiveInt, Settings, Share
from student_trainer.settings.data import DataSettings
from student_trainer.settings.evaluation import EvaluationSettings
from student_trainer.settings.loss import LossConfig
from student_trainer.settings.rollout import PipelineSettings, RolloutSettings
from student_trainer.settings.run import (
    CheckpointSettings,
    HubSettings,
    ReportSettings,
    RunSettings,
    TrackingSettings,
)
from student_trainer.settings.student import StudentSettings
from student_trainer.settings.teacher import TeacherSettings


class OptimizerSettings(Settings):
    """AdamW and its schedule."""

    lr: Positive = Field(default=2e-6, description="Peak learning rate of AdamW.")
    betas: tuple[Share, Share] = Field(
        default=(0.9, 0.999), description="Decay of the first and of the second moment."
    )
    eps: Positive = Field(default=1e-8, description="Added to the root of the second moment.")
    weight_decay: NonNegative = Field(
        default=0.01, description="Decoupled weight decay of matrices; vectors are not decayed."
    )
    clip_norm: Positive | None = Field(
        default=1.0, description="Bound on the 2-norm of the whole gradient; unset, none."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="Course of the learning rate after warm-up; `linear` and `cosine` end at 0.",
    )
    warmup_steps: Count = Field(
        default=0, description="Updates over which the learning rate rises linearly."
    )
    micro_batch_tokens: PositiveInt = Field(
        default=16384, description="Tokens, padding included, of one forward and backward pass."
    )
    updates_per_batch: PositiveInt = Field(
        default=1, description="Updates that the rollouts of a step are split into."
    )


class TrainConfig(Settings):
    """All settings of ``student-trainer train``."""

    run: RunSettings
    student: StudentSettings
    teacher: TeacherSettings = Field(default_factory=TeacherSettings)
    data: DataSettings
    rollout: RolloutSettings = Field(default_factory=RolloutSettings)
    pipeline: PipelineSettings = Field(default_factory=PipelineSettings)
    loss: LossConfig = Field(
        default_factory=LsmLoss,
        description="The loss, chosen by its kind, or a class of your own, whose kind is "
        "`package.module:Name` (docs/losses.md).",
    )
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    report: ReportSettings = Field(default_factory=ReportSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)
    hub: HubSettings = Field(default_factory=HubSettings)

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        longest = self.data.max_prompt_tokens + self.rollout.max_new_tokens
        if self.optimizer.micro_batch_tokens < longest:
            raise ValueError(
                f"optimizer.micro_batch_tokens ({self.optimizer.micro_batch_tokens}) must hold the "
                f"longest sequence: data.max_prompt_tokens + rollout.max_new_tokens = {longest}"
            )
        responses = self.rollout.prompts_per_step * self.rollout.group_size
        if responses % self.optimizer.updates_per_batch:
            raise ValueError(
                f"optimizer.updates_per_batch ({self.optimizer.updates_per_batch}) must divide the "
                f"step's {responses} responses"
            )
        same = self.loss.temperature == self.rollout.temperature
        compares = self.loss.rollout_temperature or self.loss.masked_chunks
        if compares and not same:
            what = "loss.masked_chunks" if self.loss.masked_chunks else self.loss.kind
            raise ValueError(
                f"{what} compares the student with itself at sampling time: "
                f"loss.temperature ({self.loss.temperature}) must equal rollout.temperature "
                f"({self.rollout.temperature})"
            )
        return self

    @property
    def learns_from_nuclei(self) -> bool:
        """Whether the run learns at tokens that were drawn from a nucleus: then only from
        ids in it."""
        at_draws = self.loss.at_sampled_token or self.loss.masked_chunks
        return at_draws and self.rollout.top_p < 1

    @property
    def updates(self) -> int:
        """Number of optimiser updates of the whole run."""
        return self.run.steps * self.optimizer.updates_per_batch
