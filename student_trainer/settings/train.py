"""Settings of a training run (docs/training.md). Lengths in tokens, times in seconds.

Defaults follow arXiv 2603.25562 where it states a value (K = 32, eight rollouts
of sixteen prompts, temperature 1, top-p 0.9, AdamW at 2e-6 with weight decay
0.01, gradient norm clipped to 1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from student_trainer.settings.base import (
    Count,
    NonNegative,
    Positive,
    PositiveInt,
    Settings,
    Share,
)
from student_trainer.settings.data import DataSettings
from student_trainer.settings.loss import LossConfig, LsmLoss, SampledTokenLoss
from student_trainer.trackers import check_names

# Figures of fewer frozen positions are mostly noise.
LEAST_ROWS = 256
REPOSITORY = r"^[\w.-]+/[\w.-]+$"


class RunSettings(Settings):
    name: Annotated[str, Field(min_length=1, max_length=256)] = Field(
        default="student", description="name the teacher service keeps shares by"
    )
    output_dir: Path = Field(description="directory of everything the run writes")
    seed: Count = Field(default=0, description="seeds rollouts, the order of prompts and dropout")
    steps: PositiveInt = Field(default=400, description="steps (batches of rollouts) to train for")


class LoraSettings(Settings):
    rank: PositiveInt = Field(default=16, description="rank of the update")
    alpha: Positive = Field(default=32.0, description="the update is scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="dropout on its input"
    )
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        default="all-linear",
        description="modules that get an adapter; all-linear leaves out the head",
    )
    merge_final: bool = Field(
        default=True, description="merge into the base weights in the final model"
    )


class StudentSettings(Settings):
    model: str = Field(min_length=1, description="directory or hub id of a causal language model")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="dtype of weights and activations; for bfloat16 the optimiser keeps "
        "float32 master weights and adds gradients up in float32",
    )
    device: str = Field(
        default="auto", description="cpu, cuda, cuda:N; auto takes CUDA when there is one"
    )
    chat_template: Path | None = Field(
        default=None,
        description="file of a Jinja chat template in place of the tokenizer's own; it is "
        "saved with the model",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward"
    )
    lora: LoraSettings | None = Field(
        default=None, description="train adapters instead of the weights"
    )


class TeacherSettings(Settings):
    address: str = Field(
        default="127.0.0.1:50051", description="host:port of the service's gRPC port"
    )
    name: str = Field(default="default", description="the teacher's name on that service")
    token: SecretStr | None = Field(
        default=None, description="the run's token; from the environment only"
    )
    token_file: Path | None = Field(
        default=None, description="file with the run's token, for its owner's eyes only"
    )
    tls: bool = Field(
        default=False, description="encrypt, and trust this machine's certificate authorities"
    )
    ca: Path | None = Field(
        default=None, description="encrypt, and trust the authorities of this PEM file alone"
    )
    cert: Path | None = Field(default=None, description="the trainer's own certificate, PEM")
    key: Path | None = Field(default=None, description="key of cert, PEM")
    insecure_plaintext: bool = Field(
        default=False, description="send the token unencrypted beyond this machine"
    )
    connect_timeout_seconds: Positive = Field(
        default=15.0, description="how long to look for it at start"
    )
    timeout_seconds: Positive = Field(
        default=600.0, description="bound on one request, retries included"
    )
    max_in_flight: PositiveInt = Field(
        default=64, description="requests sent at once; others wait in the trainer"
    )
    attempts: PositiveInt | None = Field(
        default=None, description="tries per request within its timeout; unset, until the timeout"
    )


class RolloutSettings(Settings):
    temperature: Positive = Field(default=1.0, description="divides the student's logits")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.9,
        description="draw from the smallest set of tokens that reaches this probability",
    )
    group_size: PositiveInt = Field(default=8, description="responses per prompt")
    prompts_per_step: PositiveInt = Field(default=16, description="prompts of a step")
    max_new_tokens: PositiveInt = Field(
        default=2048, description="a longer response is cut, and counted"
    )
    batch_size: PositiveInt = Field(default=32, description="responses generated together")


class PipelineSettings(Settings):
    staleness: Count = Field(
        default=0,
        description="steps between the weights that write a batch and those it updates; "
        "0 is strictly on-policy",
    )
    send: Literal["finished", "group"] = Field(
        default="finished",
        description="a response is scored once it has ended, or once its whole group has",
    )
    importance_cap: Positive | None = Field(
        default=2.0,
        description="tokens of a stale batch weigh pi/pi_old, at most this; unset, 1",
    )


class OptimizerSettings(Settings):
    lr: Positive = Field(default=2e-6, description="peak learning rate of AdamW")
    betas: tuple[Share, Share] = Field(default=(0.9, 0.999), description="decay of both moments")
    eps: Positive = Field(default=1e-8, description="added to the root of the second moment")
    weight_decay: NonNegative = Field(
        default=0.01, description="on matrices; vectors are not decayed"
    )
    clip_norm: Positive | None = Field(
        default=1.0, description="bound on the gradient's total norm"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="course of the rate after warm-up; linear and cosine end at 0",
    )
    warmup_steps: Count = Field(default=0, description="updates of linear warm-up")
    micro_batch_tokens: PositiveInt = Field(
        default=16384, description="tokens, padding included, per forward and backward"
    )
    updates_per_batch: PositiveInt = Field(
        default=1, description="updates a step's rollouts are split into"
    )


class EvaluationSettings(Settings):
    prompts: Count | None = Field(
        default=None,
        description="held-out prompts used, an error where there are fewer; unset, 32 or as many "
        "as there are; 0 turns evaluation off",
    )
    frozen_rows: int | None = Field(
        default=None,
        description="positions of continuations frozen before training, an error where there "
        "are fewer; unset, 512 or as many as there are; 0 turns them off",
    )
    max_new_tokens: PositiveInt = Field(default=256, description="length limit of its responses")
    top_k: Annotated[int, Field(ge=2)] = Field(
        default=64,
        description="ids of the support that evaluation across tokenizers is on; with one "
        "tokenizer it is over the whole vocabulary",
    )
    rollouts: bool = Field(default=True, description="also evaluate on fresh responses")
    samples: Count = Field(default=6, description="responses kept as text")
    batch_size: PositiveInt = Field(default=32, description="responses generated together")

    @field_validator("frozen_rows")
    @classmethod
    def _enough(cls, value: int | None) -> int | None:
        if value is not None and value != 0 and value < LEAST_ROWS:
            raise ValueError(
                f"frozen_rows must be 0 (off) or at least {LEAST_ROWS} to mean anything"
            )
        return value

    @property
    def most_prompts(self) -> int:
        """``prompts``, or what is meant where it is unset."""
        return 32 if self.prompts is None else self.prompts

    @property
    def most_rows(self) -> int:
        """``frozen_rows``, or what is meant where it is unset."""
        return 512 if self.frozen_rows is None else self.frozen_rows


class CheckpointSettings(Settings):
    every: PositiveInt = Field(
        default=20, description="steps between checkpoints; the last step has one"
    )
    keep: PositiveInt = Field(default=2, description="checkpoints kept, newest first")
    best: str | None = Field(
        default=None,
        description="metric of metrics.jsonl whose best checkpoint is kept too, by its mean over "
        "the last `every` steps; unset, none is",
    )
    best_goal: Literal["min", "max"] = Field(default="min", description="which end is best")
    resume: str = Field(
        default="auto",
        description="auto (newest good one of output_dir), never, or a checkpoint's path",
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
        default=(), description="tensorboard, trackio, wandb, mlflow; none unless named"
    )
    project: Annotated[str, Field(min_length=1)] = Field(
        default="lsm-distill", description="project (MLflow: experiment) the run belongs to"
    )

    @field_validator("trackers")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_names(value)
        return value


class HubSettings(Settings):
    repo: Annotated[str, Field(pattern=REPOSITORY)] | None = Field(
        default=None, description="OWNER/NAME to push the final model to; unset, nothing is"
    )
    private: bool = Field(default=True, description="of a repository that is made")


class TrainConfig(Settings):
    run: RunSettings
    student: StudentSettings
    teacher: TeacherSettings = Field(default_factory=TeacherSettings)
    data: DataSettings
    rollout: RolloutSettings = Field(default_factory=RolloutSettings)
    pipeline: PipelineSettings = Field(default_factory=PipelineSettings)
    loss: LossConfig = Field(default_factory=LsmLoss)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    report: ReportSettings = Field(default_factory=ReportSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)
    hub: HubSettings = Field(default_factory=HubSettings)

    @field_validator("loss", mode="before")
    @classmethod
    def _lsm_unless_named(cls, value: Any) -> Any:
        """A loss section without a kind is of the default one."""
        return {"kind": "lsm", **value} if isinstance(value, dict) else value

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
        compares = isinstance(self.loss, SampledTokenLoss) or self.loss.masked_chunks
        if compares and not same:
            what = "loss.masked_chunks" if self.loss.masked_chunks else "sampled_token"
            raise ValueError(
                f"{what} compares the student with itself at sampling time: "
                f"loss.temperature ({self.loss.temperature}) must equal rollout.temperature "
                f"({self.rollout.temperature})"
            )
        return self

    @property
    def updates(self) -> int:
        """Optimiser updates of the whole run."""
        return self.run.steps * self.optimizer.updates_per_batch
