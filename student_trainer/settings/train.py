"""Settings of a training run (docs/training.md). Lengths in tokens, times in seconds.

Defaults follow arXiv 2603.25562 where it states a value (eight rollouts of sixteen prompts,
temperature 1, top-p 0.9, AdamW at 2e-6 with weight decay 0.01, gradient norm clipped to 1), but for
K: docs/losses.md says why it is 128, and not 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from teacher_proto.errors import ConfigurationError

from student_trainer.losses import LsmLoss
from student_trainer.losses.parts.loss import RowsAsked
from student_trainer.rewards.settings import RewardSettings
from student_trainer.settings.base import Count, NonNegative, Positive, PositiveInt, Settings, Share
from student_trainer.settings.data import DataSettings
from student_trainer.settings.evaluation import EvaluationSettings, VerificationSettings
from student_trainer.settings.kinds import LossConfig, TaskConfigs, WeightConfigs, check_tasks
from student_trainer.settings.rollout import (
    MixingSettings,
    PipelineSettings,
    RolloutSettings,
    ScoringSettings,
)
from student_trainer.settings.run import (
    CheckpointSettings,
    DistributedSettings,
    HubSettings,
    ReportSettings,
    RunSettings,
    TrackingSettings,
)
from student_trainer.settings.student import StudentSettings
from student_trainer.settings.teacher import (
    ONLY_TEACHER,
    NamedTeacherSettings,
    TeacherSettings,
    check_names,
)
from student_trainer.weights.base import OF_BOTH, OF_THE_TEACHER


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
        default=16384,
        description="Tokens that one forward and backward pass reads at most. A prompt that "
        "several responses share counts once; padding counts where sequences are not packed "
        "(`student.packing`).",
    )
    updates_per_batch: PositiveInt = Field(
        default=1, description="Updates that the rollouts of a step are split into."
    )


class TrainConfig(Settings):
    """All settings of ``student-trainer train``."""

    run: RunSettings
    student: StudentSettings
    teacher: TeacherSettings | None = Field(
        default_factory=TeacherSettings, description="The run's only teacher."
    )
    teachers: dict[str, NamedTeacherSettings] | None = Field(
        default=None,
        description="Several teachers by name, in place of `teacher`; `data.columns.teacher` "
        "chooses one for each row.",
    )
    data: DataSettings = Field(default_factory=DataSettings)
    tasks: TaskConfigs | None = Field(
        default=None,
        description="A task by its name, in place of `data.train`: prompts, and what judges the "
        "responses to them. It is chosen by its kind, or is a class of your own, whose kind is "
        "`package.module:Name` (docs/tasks.md).",
    )
    verification: VerificationSettings = Field(default_factory=VerificationSettings)
    reward: RewardSettings = Field(default_factory=RewardSettings)
    rollout: RolloutSettings = Field(default_factory=RolloutSettings)
    pipeline: PipelineSettings = Field(default_factory=PipelineSettings)
    scoring: ScoringSettings = Field(default_factory=ScoringSettings)
    mixing: MixingSettings = Field(default_factory=MixingSettings)
    loss: LossConfig = Field(
        default_factory=LsmLoss,
        description="The loss, chosen by its kind, or a class of your own, whose kind is "
        "`package.module:Name` (docs/losses.md).",
    )
    weights: WeightConfigs = Field(
        default=(),
        description="Weights of rows, multiplied with each other: a list, `[[weights]]`, each of a "
        "kind or a class of your own, whose kind is `package.module:Name` (docs/losses.md).",
    )
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    report: ReportSettings = Field(default_factory=ReportSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)
    hub: HubSettings = Field(default_factory=HubSettings)
    distributed: DistributedSettings = Field(default_factory=DistributedSettings)

    @model_validator(mode="before")
    @classmethod
    def _one_teacher_or_several(cls, values: Any) -> Any:
        """Several teachers take the place of the only one, and its defaults go with it."""
        if not isinstance(values, dict):
            return values
        if values.get("teachers") is None:
            if "teacher" in values and values["teacher"] is None:
                raise ValueError(
                    "there is no teacher: describe the run's only one in [teacher], or several in "
                    "[teachers.NAME]"
                )
            return values
        if values.get("teacher") is not None:
            raise ConfigurationError(
                "teacher and teachers exclude each other: a run's only teacher is described in "
                "[teacher], and every one of several in [teachers.NAME]",
                where="teacher",
                fix="leave [teacher] out; of a recipe that has one, write a copy "
                "(student-trainer recipes NAME)",
            )
        return {**values, "teacher": None}

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
        self._weights_have_what_they_need()
        self._answers_can_be_mixed_in()
        self._best_is_measured()
        self._scores_can_be_learnt_from()
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

    @model_validator(mode="after")
    def _there_are_prompts(self) -> TrainConfig:
        if self.tasks is None and self.data.train is None:
            raise ConfigurationError(
                "is required and not set",
                where="data.train",
                fix="name a file or a dataset of prompts, or describe tasks in [tasks.NAME]",
            )
        if self.tasks is None and self.data.batches != "mixed":
            raise ValueError(
                f"data.batches = {self.data.batches} orders tasks, and there are no [tasks.NAME]"
            )
        return self

    @model_validator(mode="after")
    def _rows_have_teachers(self) -> TrainConfig:
        default, column = self.data.teacher, self.data.columns.teacher
        if self.tasks is not None:
            check_tasks(self.tasks, self.teachers or (), self.data)
        if self.teachers is None:
            for key, value in (("data.teacher", default), ("data.columns.teacher", column)):
                if value is not None:
                    raise ValueError(
                        f"{key} chooses among several teachers, and there are no [teachers.NAME]"
                    )
            return self
        check_names(self.teachers)
        if default is not None and default not in self.teachers:
            raise ValueError(
                f"data.teacher is {default!r}, which is none of the teachers "
                f"({', '.join(self.teachers)})"
            )
        if len(self.teachers) > 1 and column is None and self.tasks is None:
            raise ValueError(
                "several teachers need a column of the data that says which one scores a row "
                "(data.columns.teacher)"
            )
        for name, one in self.teachers.items():
            if one.top_k is not None:
                self._check_top_k(name, one.top_k)
        return self

    def _check_top_k(self, name: str, top_k: int) -> None:
        """Raises ValueError for a K with which the loss cannot compare this teacher's rows."""
        if not self.loss.asks(realigned=False).top_k:
            raise ValueError(
                f"teachers.{name}.top_k: the loss asks for none of the teacher's own ids"
            )
        if "top_k" not in type(self.loss).model_fields:
            return
        try:
            type(self.loss).model_validate({**self.loss.model_dump(), "top_k": top_k})
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"teachers.{name}.top_k = {top_k}: {why}") from None

    @property
    def named_teachers(self) -> Mapping[str, TeacherSettings]:
        """Every teacher of the run, in the order of the settings; the only one of `[teacher]`
        is named ``ONLY_TEACHER``."""
        if self.teachers is not None:
            return self.teachers
        assert self.teacher is not None, "there is one section or the other"
        return {ONLY_TEACHER: self.teacher}

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each task, or of each file of ``data.train``, in the prompts of a run;
        empty where there are neither tasks nor weights."""
        if self.tasks is None:
            return self.data.shares
        weights = [one.weight for one in self.tasks.values()]
        return tuple(weight / sum(weights) for weight in weights)

    @property
    def turn(self) -> int:
        """How many prompts in a row are of the same task."""
        return self.rollout.prompts_per_step if self.data.batches == "alternating" else 1

    @property
    def balances_teachers(self) -> bool:
        """Whether the loss of an update is the mean of several teachers' own means."""
        return len(self.named_teachers) > 1 and self.loss.balance == "teachers"

    def weight_of(self, teacher: str) -> float:
        """The factor of the loss of the rows that this teacher scores."""
        return 1.0 if self.teachers is None else self.teachers[teacher].weight

    def rows_asked(self, teacher: str, *, realigned: bool) -> RowsAsked:
        """What the loss asks of this teacher's rows.

        Args:
            realigned: whether it has another tokenizer than the student.
        """
        asked = self.loss.asks(realigned=realigned)
        top_k = self.own_top_k(teacher)
        return asked if top_k is None or not asked.top_k else replace(asked, top_k=top_k)

    def own_top_k(self, teacher: str) -> int | None:
        """K in this teacher's own section; None where it is the loss's."""
        return None if self.teachers is None else self.teachers[teacher].top_k

    def _weights_have_what_they_need(self) -> None:
        on_support = {
            weight.kind: fact
            for weight in self.weights
            for fact in weight.needs
            if fact in (*OF_THE_TEACHER, *OF_BOTH)
        }
        for kind, fact in on_support.items():
            if not (self.loss.asks(realigned=False).top_k or self.loss.student_top_k):
                raise ValueError(
                    f"the weight {kind} reads the {fact} of a row's support, and the loss asks "
                    "for none: set loss.top_k above 0"
                )
            if self.loss.masked_chunks:
                raise ValueError(
                    f"the weight {kind} reads the {fact} of a row's support, and with "
                    "loss.masked_chunks there are rows that learn from their chunk and have none"
                )

    def _best_is_measured(self) -> None:
        held_out = self.checkpoint.best_held_out is not None
        if held_out and not self.evaluation.every:
            raise ValueError(
                f"checkpoint.best is {self.checkpoint.best}, and nothing is evaluated during the "
                "run: set evaluation.every above 0"
            )
        if self.evaluation.patience is not None and not held_out:
            raise ValueError(
                "evaluation.patience waits for a better held-out value: say which, with "
                "checkpoint.best = held_out/reverse_kl or another, and set evaluation.every"
            )

    def _scores_can_be_learnt_from(self) -> None:
        if not self.reward.learns:
            return
        learnt = [one for one in (self.tasks or {}).values() if one.weight > 0]
        if not any(one.verifies for one in learnt):
            raise ValueError(
                "reward learns from the scores of tasks, and "
                + (
                    "no task that is trained on judges"
                    if self.tasks
                    else "there are no [tasks.NAME]"
                )
                + ": describe one that does, or leave reward.weight and reward.last_weight out"
            )
        if not self.verification.training:
            raise ValueError(
                "reward learns from the scores of each step's responses, and with "
                "verification.training = false they are not judged: set it to true, or leave "
                "reward.weight and reward.last_weight out"
            )
        if self.rollout.group_size == 1:
            raise ValueError(
                "reward compares the scores of responses to the same prompt, and with "
                "rollout.group_size = 1 there is only one: raise it, or leave reward.weight and "
                "reward.last_weight out"
            )

    def _answers_can_be_mixed_in(self) -> None:
        column = self.data.columns.response
        if self.mixing.mixes and self.tasks is not None:
            raise ValueError(
                "mixing learns from answers of data.train, and tasks have none: unset mixing.share "
                "and mixing.cold_start_steps, or give the prompts in data.train"
            )
        if not self.mixing.mixes:
            if column is not None:
                raise ValueError(
                    "data.columns.response names answers, and no step has any: set mixing.share or "
                    "mixing.cold_start_steps, or unset it"
                )
            return
        if column is None:
            raise ValueError(
                "mixing needs the column of the answers: set data.columns.response, or unset "
                "mixing.share and mixing.cold_start_steps"
            )
        if self.loss.at_sampled_token or self.loss.own_ratio:
            raise ValueError(
                f"{self.loss.kind} is a policy gradient at the sampled tokens, and with which "
                "probability an answer of the data was written is not known: it is no gradient of "
                "any divergence there, and no importance weight can make it one. Use a loss on a "
                "support with mixing.share and mixing.cold_start_steps, such as loss.kind = lsm"
            )

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


def section_of(config: TrainConfig, teacher: str) -> str:
    """The key of the section that describes a teacher: ``teacher`` or ``teachers.NAME``."""
    return "teacher" if config.teachers is None else f"teachers.{teacher}"
