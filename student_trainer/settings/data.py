"""Settings of the prompts (docs/data.md). Lengths in tokens."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from student_trainer.settings.base import PathOrName, Positive, PositiveInt, Settings

Name = Annotated[PathOrName, BeforeValidator(lambda v: str(v) if isinstance(v, Path) else v)]


class DataFile(Settings):
    """One of several files of prompts."""

    file: Name = Field(description="As `data.train`, one file or dataset.")
    weight: Positive | None = Field(
        default=None,
        description="Share of the prompts of a run that come from it, relative to the weights of "
        "the others.",
    )


def _one_or_several(value: Any) -> Any:
    """Refuses what is neither before the types of both are tried in turn."""
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("the list is empty: name at least one file")
        for one in value:
            if not isinstance(one, str | Path | dict | DataFile):
                raise ValueError(f"{one!r} is neither a name nor {{file = ..., weight = ...}}")
        return tuple({"file": one} if isinstance(one, str | Path) else one for one in value)
    if not isinstance(value, str | Path):
        raise ValueError("it is neither a name nor a list of names")
    return value


def _how_many(value: Any) -> str:
    return "one" if isinstance(value, str | Path) else "several"


Files = Annotated[
    Annotated[Name, Tag("one")] | Annotated[tuple[DataFile, ...], Tag("several")],
    Discriminator(_how_many),
    BeforeValidator(_one_or_several),
]


def _local_time(value: Any) -> Any:
    """ISO 8601 to the second. Raises ValueError for a time with a zone or of another form."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError("give a date and a time, such as 2026-11-29T05:53:12")
    if value.tzinfo is not None:
        raise ValueError("give the local time, without a time zone")
    if value.microsecond:
        raise ValueError("give whole seconds")
    return value.isoformat(timespec="seconds")


def template_pieces(template: str) -> list[tuple[str, str | None]]:
    """(literal text, the name in braces after it or None), in order.

    Raises:
        ValueError: it is no template, or has more in braces than a name.
    """
    pieces = []
    for literal, name, form, conversion in Formatter().parse(template):
        if form or conversion:
            raise ValueError(f"{{{name}}} has more in its braces than a column's name")
        if name == "":
            raise ValueError("{} names no column; write {{ and }} for braces")
        pieces.append((literal, name))
    return pieces


def _with_columns(template: str) -> str:
    if not any(name for _, name in template_pieces(template)):
        raise ValueError("it names no column, as in {prompt}: every prompt would be the same")
    return template


LocalTime = Annotated[str, BeforeValidator(_local_time)]


class ColumnSettings(Settings):
    """Names of the columns of a row."""

    prompt: Name | None = Field(
        default=None,
        description="Column of the prompt: a conversation, or a text that is used as it is, "
        "without the chat template; unset, `messages`, `prompt` or `conversations`, whichever a "
        "row has.",
    )
    user: Name | None = Field(
        default=None,
        description="Column of a text that is the user's turn of a conversation, in place of "
        "`data.columns.prompt`.",
    )
    system: Name | None = Field(
        default=None,
        description="Column of a row's own system prompt, in place of `data.system`.",
    )
    template_arguments: Name | None = Field(
        default=None,
        description="Column of a row's own keyword arguments of the chat template; they "
        "override `data.template_arguments`.",
    )
    tools: Name | None = Field(
        default=None,
        description="Column of the tools, as JSON schemas, that the chat template lists. Rows may "
        "lack it.",
    )
    teacher: Name | None = Field(
        default=None,
        description="Column of the name of the teacher that scores the row, one of "
        "`teachers`; rows without it have `data.teacher`.",
    )
    teacher_prompt: Name | None = Field(
        default=None,
        description="Column of what the teacher reads in place of the student's prompt: a "
        "conversation, or a text that takes the place of the last user's turn (of the text, where "
        "the prompt is one). The student does not see it. Rows without it have one prompt for "
        "both.",
    )

    response: Name | None = Field(
        default=None,
        description="Column of an answer, a text, which `mixing` learns from. Every training row "
        "has one, and it follows on the prompt as the student's chat template would go on.",
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> ColumnSettings:
        if self.user is not None and self.prompt is not None:
            raise ValueError("user and prompt exclude each other: both name the prompt's column")
        return self


class DataSettings(Settings):
    """The prompts (docs/data.md)."""

    train: Files | None = Field(
        default=None,
        description="A file that ends in `.jsonl`, `.json`, `.jsonl.gz`, `.json.gz` or `.parquet`, "
        "the folder of a dataset, or the name of a dataset on the hub; or a list of these, or of "
        "`{file = ..., weight = ...}`. Needed unless there are `tasks`.",
    )
    held_out: Files | None = Field(
        default=None,
        description="Prompts to evaluate on, named as `data.train` is, without weights.",
    )
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Share of the training prompts that is held out where `data.held_out` is "
        "unset.",
    )
    subset: Name | None = Field(default=None, description="Configuration of the hub dataset.")
    train_split: Name = Field(
        default="train", description="Split of the hub dataset or folder to train on."
    )
    held_out_split: Name = Field(
        default="test", description="Split of the hub dataset or folder that `data.held_out` names."
    )
    revision: Name | None = Field(
        default=None, description="Revision of the hub datasets: a branch, a tag or a commit."
    )
    columns: ColumnSettings = Field(default_factory=ColumnSettings)
    batches: Literal["mixed", "alternating"] = Field(
        default="mixed",
        description="Of several tasks: every step has prompts of all by their weights (`mixed`), "
        "or of one, and the tasks take turns by their weights (`alternating`).",
    )
    system: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="System prompt of every conversation that has none.",
    )
    teacher: Name | None = Field(
        default=None,
        description="Of several teachers, the one that scores rows which name none in the column "
        "of `data.columns.teacher`; unset, every row has to name one.",
    )
    teacher_prompt_template: Annotated[str, AfterValidator(_with_columns)] | None = Field(
        default=None,
        description="What the teacher reads in place of the last user's turn (of the text, where "
        "the prompt is one), from the row's columns, such as `\"{prompt}\\n\\nA worked "
        'solution:\\n{solution}"`. `{prompt}` is what it takes the place of; other names are '
        "columns, which every row has to have; `{{` and `}}` are braces.",
    )
    max_prompt_tokens: PositiveInt = Field(
        default=2048,
        description="Tokens of the longest prompt allowed, as the chat template renders it.",
    )
    over_long: Literal["error", "drop"] = Field(
        default="error",
        description="What happens to a longer prompt, and to one that a teacher which renders "
        "prompts itself reads as longer than it takes: it is an error, or it is left out and "
        "counted. None is ever cut.",
    )
    refused: Literal["error", "drop"] = Field(
        default="error",
        description="What happens to a prompt that is empty or that a chat template refuses, the "
        "student's or that of a teacher that renders prompts itself: it is an error, or it is left "
        "out and counted.",
    )
    final_assistant: Literal["error", "drop"] = Field(
        default="error",
        description="What happens to an assistant's turn at the end of a conversation: it is an "
        "error, or it is dropped so that the student writes its own.",
    )
    template_arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="Keyword arguments of the chat template, such as `enable_thinking`.",
    )
    now: LocalTime | None = Field(
        default=None,
        description="The local date and time that chat templates print, on both sides, such as "
        '`"2026-11-29T05:53:12"`; unset, the moment at which the run is first started, which its '
        "checkpoints keep.",
    )
    add_bos: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Whether a prompt is begun with the tokenizer's begin-of-text token where it "
        "does not begin with it: `auto` for text prompts, as the tokenizer itself does; `always` "
        "for conversations too; or `never`.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> DataSettings:
        if self.held_out is not None and self.held_out_fraction > 0:
            raise ValueError("held_out and held_out_fraction exclude each other")
        weighted = [one for one in files(self.train) if one.weight is not None]
        if weighted and len(weighted) < len(files(self.train)):
            raise ValueError(
                "train has files with a weight and files without: give each one a weight, or none"
            )
        if self.teacher_prompt_template is not None and self.columns.teacher_prompt is not None:
            raise ValueError(
                "teacher_prompt_template and columns.teacher_prompt exclude each other: both say "
                "what the teacher reads"
            )
        if any(one.weight is not None for one in files(self.held_out)):
            raise ValueError("held_out has weights, which mean nothing in an evaluation")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each train file in the prompts of a run; empty where there are no
        weights."""
        weights = [one.weight for one in files(self.train) if one.weight is not None]
        return tuple(weight / sum(weights) for weight in weights)


def files(value: str | tuple[DataFile, ...] | None) -> tuple[DataFile, ...]:
    """The files that ``data.train`` or ``data.held_out`` names, in order."""
    if value is None:
        return ()
    return (DataFile(file=value),) if isinstance(value, str) else value
