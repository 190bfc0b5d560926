"""Settings of the evaluations of a run, and of the processes that judge responses. Lengths in
tokens."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from student_trainer.settings.base import Count, Positive, PositiveInt, Settings

# Results on fewer frozen positions are mostly noise.
LEAST_ROWS = 256
MIB = 2**20


class EvaluationSettings(Settings):
    """Measurements on held-out prompts, before and after training, and during it."""

    prompts: Count | None = Field(
        default=None,
        description="Held-out prompts to use; it is an error when there are fewer. Unset, 32 or "
        "as many as there are; 0 turns evaluation off.",
    )
    frozen_rows: int | None = Field(
        default=None,
        description="Positions to freeze before training, at least 256; it is an error when "
        "there are fewer. Unset, 512 or as many as there are; 0 turns them off.",
    )
    max_new_tokens: PositiveInt = Field(
        default=256, description="Tokens of the longest response that is drawn for an evaluation."
    )
    top_k: Annotated[int, Field(ge=2)] = Field(
        default=64,
        description="Ids of the support on which a teacher with another tokenizer is compared; "
        "with the same tokenizer the whole vocabulary is.",
    )
    rollouts: bool = Field(default=True, description="Also measure on fresh rollouts.")
    samples: Count = Field(default=6, description="Responses that are kept as text.")
    batch_size: PositiveInt = Field(
        default=32, description="Responses that are generated together."
    )
    every: Count = Field(
        default=0,
        description="Steps between evaluations during the run, the last of which is after the last "
        "step; 0, there are none but those before and after it.",
    )
    task_prompts: Count = Field(
        default=64,
        description="Held-out prompts of each task whose responses are judged, or as many as "
        "there are; 0 judges none.",
    )
    task_responses: PositiveInt = Field(
        default=4, description="Responses to each of these prompts, n."
    )
    pass_at: tuple[PositiveInt, ...] | None = Field(
        default=None,
        description="Of which k pass@k is estimated, at most `evaluation.task_responses`; unset, "
        "of 1 and of all responses. pass@1 always is.",
    )
    patience: PositiveInt | None = Field(
        default=None,
        description="The run ends once so many evaluations in a row are not better than the best "
        "before them, by the held-out value that `checkpoint.best` names. Unset, it makes all its "
        "steps.",
    )

    @field_validator("frozen_rows")
    @classmethod
    def _enough(cls, value: int | None) -> int | None:
        if value is not None and value != 0 and value < LEAST_ROWS:
            raise ValueError(
                f"frozen_rows must be 0 (off) or at least {LEAST_ROWS} to mean anything"
            )
        return value

    @model_validator(mode="after")
    def _enough_responses(self) -> EvaluationSettings:
        most = max(self.pass_sizes)
        if most > self.task_responses:
            raise ValueError(
                f"pass_at asks for pass@{most}, and task_responses draws {self.task_responses} "
                "responses to a prompt"
            )
        return self

    @property
    def pass_sizes(self) -> tuple[int, ...]:
        """Every k of pass@k, ascending."""
        asked = (self.task_responses,) if self.pass_at is None else self.pass_at
        return tuple(sorted({1, *asked}))

    @property
    def most_prompts(self) -> int:
        """``prompts``, or its default if it is unset."""
        return 32 if self.prompts is None else self.prompts

    @property
    def most_rows(self) -> int:
        """``frozen_rows``, or its default if it is unset."""
        return 512 if self.frozen_rows is None else self.frozen_rows


class VerificationSettings(Settings):
    """The processes in which the verifiers of tasks judge responses (docs/tasks.md), and those of
    environments (docs/environments.md)."""

    processes: PositiveInt = Field(
        default=1,
        description="Processes that judge responses at the same time; and as many that play the "
        "episodes of tasks that act.",
    )
    seconds: Positive = Field(
        default=5.0,
        description="Seconds that one response may take; then its process is ended, and the "
        "response counts as not right.",
    )
    memory_bytes: PositiveInt = Field(
        default=512 * MIB,
        description="Address space that a process may take beside what it has once its tasks are "
        "ready.",
    )
    training: bool = Field(
        default=True,
        description="Also judge the responses of every step, while the step is updated on; the "
        "metrics have the share that is right. Held-out responses are always judged.",
    )
