"""From rows of a TRL dataset to what the teacher reads: the prompt itself, and which teacher.

TRL's trainer gives the loss token ids alone. The ids of a prompt are computed here as TRL
computes them, from the same row, and lead back to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import Int32

from student_trainer.data.columns import Columns
from student_trainer.data.conversations import row_prompt
from student_trainer.rollout.base import PromptItem
from student_trainer.settings.data import ColumnSettings, DataSettings

PROMPT = "prompt"
Tokenize = Callable[[Sequence[Any]], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt and the name of the teacher that scores its responses."""

    item: PromptItem
    teacher: str


class Prompts:
    """The prompts of the rows that TRL works on, by the token ids that the student reads.

    Args:
        teachers: the names of the teachers.
        column: the dataset's column that names a row's teacher.
        default: the teacher of rows that name none; None where every row has to name one.
        arguments: of the chat template.
    """

    def __init__(
        self,
        teachers: Sequence[str],
        column: str,
        default: str | None,
        tokenize: Tokenize,
        arguments: Mapping[str, Any],
    ) -> None:
        self._teachers = tuple(teachers)
        self._column = column
        self._default = self._teachers[0] if len(self._teachers) == 1 else default
        if default is not None and default not in self._teachers:
            raise ConfigurationError(
                f"there is no teacher {default!r}",
                where="default_teacher",
                fix=f"name one of {', '.join(self._teachers)}",
            )
        self._tokenize = tokenize
        self._settings = DataSettings(
            train="the trainer's dataset",
            columns=ColumnSettings(prompt=PROMPT),
            template_arguments=dict(arguments),
        )
        self._known: dict[bytes, AskedPrompt] = {}

    def check(self, rows: Iterable[Mapping[str, Any]], where: str) -> None:
        """Refuses a dataset whose rows name a teacher that is not there, or none where they have
        to; and one in which a prompt has two teachers, since TRL keeps nothing of a row but its
        prompt.

        Raises:
            ConfigurationError: names the rows.
        """
        if len(self._teachers) == 1:
            return
        chosen: dict[str, tuple[int, str]] = {}
        for index, row in enumerate(rows):
            name = self.teacher_of(row, f"{where}[{index}]")
            first, other = chosen.setdefault(repr(row[PROMPT]), (index, name))
            if other != name:
                raise ConfigurationError(
                    f"rows {first} and {index} have one prompt and two teachers, {other} and "
                    f"{name}",
                    where=where,
                    fix="keep one of them: TRL hands the loss a row's prompt and nothing else",
                )

    def teacher_of(self, row: Mapping[str, Any], place: str) -> str:
        """The teacher of a row. Raises ConfigurationError."""
        name = row.get(self._column)
        if name is None:
            name = self._default
        if name in self._teachers:
            return str(name)
        raise ConfigurationError(
            f"column {self._column!r} names no teacher"
            if name is None
            else f"column {self._column!r} is {name!r}, and there is no such teacher",
            where=place,
            fix=f"name one of {', '.join(self._teachers)}, or give default_teacher",
        )

    def take(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Learns the rows of a step, in place of those before.

        Raises:
            ConfigurationError: a row has no prompt, or two of them have one prompt and two
                teachers.
        """
        self._known = {}
        for row in rows:
            if row.get(PROMPT) is None:
                raise ConfigurationError(
                    f"a row has no prompt: it has the columns {', '.join(map(str, row))}",
                    where="train_dataset",
                    fix=f"give it a text or messages in the column {PROMPT!r}",
                )
        for row, ids in zip(rows, self._tokenize([row[PROMPT] for row in rows]), strict=True):
            place = f"the row with the prompt {str(row[PROMPT])[:60]!r}"
            columns = Columns(self._settings.columns, "train_dataset")
            token_ids = np.asarray(ids, np.int32)
            asked = AskedPrompt(
                PromptItem(
                    prompt_id=hashlib.sha256(token_ids.tobytes()).hexdigest()[:32],
                    token_ids=token_ids,
                    source=row_prompt({PROMPT: row[PROMPT]}, place, self._settings, columns),
                    place=place,
                ),
                self.teacher_of(row, place),
            )
            before = self._known.setdefault(_key(token_ids), asked)
            if before.teacher != asked.teacher:
                raise ConfigurationError(
                    f"one prompt has two teachers, {before.teacher} and {asked.teacher}",
                    where=place,
                    fix="keep one: TRL hands the loss a row's prompt and nothing else",
                )

    def of(self, token_ids: Int32) -> AskedPrompt:
        """The prompt of these ids.

        Raises:
            ConfigurationError: no row of the step has them.
        """
        found = self._known.get(_key(token_ids))
        if found is None:
            raise ConfigurationError(
                f"TRL wrote a response to {len(token_ids)} prompt tokens that no row of the step "
                "has: it tokenizes prompts otherwise than its tokenizer does",
                where="train_dataset",
                fix="use the version of TRL that constraints.txt names",
            )
        return found


def _key(token_ids: Int32) -> bytes:
    return np.ascontiguousarray(token_ids, np.int32).tobytes()
