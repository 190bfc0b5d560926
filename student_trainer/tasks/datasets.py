"""Tasks whose prompts are a dataset's: which files, and which columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, model_validator
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings_types import PathOrName

from student_trainer.tasks.base import PlacedRow, Read, Row, Split, Task

SHAPES = ("messages", "prompt", "conversations")
ALONGSIDE = ("system", "tools", "template_arguments", "teacher_prompt")


class DatasetTask(Task):
    """A task whose prompts are the rows of a file, a folder or a dataset on the hub."""

    train: PathOrName | None = Field(
        default=None,
        description="Its prompts to train on, one file or dataset as `data.train` names it; needed "
        "unless its weight is 0.",
    )
    held_out: PathOrName | None = Field(
        default=None,
        description="Its prompts to evaluate on, named the same way; unset, it is not evaluated.",
    )
    subset: PathOrName | None = Field(default=None, description="Configuration of the hub dataset.")
    train_split: PathOrName = Field(
        default="train", description="Split of the hub dataset or folder to train on."
    )
    held_out_split: PathOrName = Field(
        default="test", description="Split of the hub dataset or folder that `held_out` names."
    )
    revision: PathOrName | None = Field(
        default=None, description="Revision of the hub datasets: a branch, a tag or a commit."
    )

    @model_validator(mode="after")
    def _has_prompts(self) -> DatasetTask:
        if self.weight and self.train is None:
            raise ValueError(
                "train is required: name its prompts to train on, or set weight = 0 for a task "
                "that the run is evaluated on alone"
            )
        if not self.weight and self.held_out is None:
            raise ValueError(
                "its weight is 0, so that the run is evaluated on it alone: name its prompts in "
                "held_out"
            )
        return self

    def rows(self, split: Split, read: Read) -> Iterator[PlacedRow]:
        """The dataset's rows; none where the split is not set. Raises ConfigurationError."""
        name = self.train if split == "train" else self.held_out
        if name is None:
            return
        part = self.train_split if split == "train" else self.held_out_split
        yield from read(name, split, subset=self.subset, split=part, revision=self.revision)


def required(row: Row, column: str, place: str, setting: str) -> Any:
    """The value in a column that every row has. Raises ConfigurationError."""
    if row.get(column) is None:
        raise ConfigurationError(
            f"the row has no {column!r}; its columns are {', '.join(sorted(row)) or 'none'}",
            where=place,
            fix=f"give it one, leave the row out, or name another column in {setting}",
        )
    return row[column]


def user_turn(text: Any, column: str, place: str) -> list[dict[str, str]]:
    """A conversation of one user's turn. Raises ConfigurationError for what is no text."""
    if not isinstance(text, str):
        raise ConfigurationError(
            f"the column {column!r} holds a {type(text).__name__}, and the user's turn is a text",
            where=place,
            fix="write a text",
        )
    return [{"role": "user", "content": text}]


def asked(text: Any, instruction: str, form: str, column: str, place: str) -> dict[str, Any]:
    """The prompt of a question: a conversation of one turn, or a text that is used as it is.

    Args:
        form: "chat" or "text".
        column: that the question is from.

    Raises:
        ConfigurationError: it is no text.
    """
    messages = user_turn(text, column, place)
    messages[0]["content"] += instruction
    return {"messages": messages} if form == "chat" else {"prompt": messages[0]["content"]}
