"""Conversations and texts without a right answer: a task that has prompts alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field
from teacher_proto.program.settings_types import PathOrName

from student_trainer.tasks.base import PlacedRow, Read, Split
from student_trainer.tasks.datasets import ALONGSIDE, SHAPES, DatasetTask, required, user_turn


class ChatTask(DatasetTask):
    """Prompts of a dataset, conversations or texts, without a right answer."""

    verifies: ClassVar[bool] = False

    kind: Literal["chat"] = "chat"
    user: PathOrName | None = Field(
        default=None,
        description="Column of a text that is the user's turn of a conversation; unset, a row's "
        "prompt is its `messages`, `prompt` or `conversations`, as in `data.train`.",
    )

    def prompts(self, split: Split, read: Read) -> Iterator[PlacedRow]:
        """As ``Task.prompts``."""
        for place, row in self.rows(split, read):
            kept = {name: row[name] for name in ALONGSIDE if row.get(name) is not None}
            if self.user is None:
                prompt = {name: row[name] for name in SHAPES if row.get(name) is not None}
            else:
                text = required(row, self.user, place, "user")
                prompt = {"messages": user_turn(text, self.user, place)}
            yield place, {**prompt, **kept}
