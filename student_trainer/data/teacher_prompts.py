"""What only the teacher reads of a row: a column of its own, or a template over the columns
(``data.columns.teacher_prompt``, ``data.teacher_prompt_template``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ChatPrompt, TextPrompt

from student_trainer.data.columns import Columns, check_text
from student_trainer.data.conversations import conversation
from student_trainer.settings.data import DataSettings, template_pieces

PROMPT = "prompt"  # in a template: what the text takes the place of


def teacher_prompt(
    row: Mapping[str, Any],
    place: str,
    settings: DataSettings,
    columns: Columns,
    prompt: TextPrompt | ChatPrompt,
) -> TextPrompt | ChatPrompt | None:
    """What the teacher reads in place of the row's prompt; None where it reads the same.

    Args:
        prompt: of the row, as the student reads it.

    Raises:
        ConfigurationError: a column is missing or cannot be read.
    """
    template = settings.teacher_prompt_template
    if template is not None:
        return _with_text(prompt, _filled(template, row, place, columns, prompt), place)
    value = columns.optional(row, "teacher_prompt")
    if value is None or value == "":
        return None
    column = str(settings.columns.teacher_prompt)
    check_text(value, column, place)
    if isinstance(value, str):
        return _with_text(prompt, value, place)
    return conversation(value, row, f"{place}: {column}", settings, columns)


def _filled(
    template: str,
    row: Mapping[str, Any],
    place: str,
    columns: Columns,
    prompt: TextPrompt | ChatPrompt,
) -> str:
    parts = []
    for literal, name in template_pieces(template):
        parts.append(literal)
        if name == PROMPT:
            parts.append(_replaced(prompt, place))
        elif name is not None:
            value = columns.value(row, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (isinstance(value, str) or (number and math.isfinite(value))):
                what = "has no" if value is None else "holds neither a text nor a number in its"
                raise ConfigurationError(
                    f"the row {what} column {name!r}, which data.teacher_prompt_template prints; "
                    f"its columns are {', '.join(map(repr, sorted(row)))}",
                    where=place,
                    fix="give the row a value, or correct the name in the template",
                )
            parts.append(str(value))
    text = "".join(parts)
    check_text(text, "data.teacher_prompt_template", place)
    return text


def _replaced(prompt: TextPrompt | ChatPrompt, place: str) -> str:
    """What a text of the teacher's takes the place of."""
    if isinstance(prompt, TextPrompt):
        return prompt.text
    return str(prompt.messages[_last_user(prompt, place)].content)


def _with_text(prompt: TextPrompt | ChatPrompt, text: str, place: str) -> TextPrompt | ChatPrompt:
    """The prompt with another text, or with another last turn of the user's."""
    if isinstance(prompt, TextPrompt):
        return replace(prompt, text=text)
    messages, last = list(prompt.messages), _last_user(prompt, place)
    messages[last] = replace(messages[last], content=text)
    return replace(prompt, messages=tuple(messages))


def _last_user(prompt: ChatPrompt, place: str) -> int:
    for index in reversed(range(len(prompt.messages))):
        if prompt.messages[index].role == "user":
            return index
    raise ConfigurationError(
        "what only the teacher reads takes the place of the user's last turn, and the conversation "
        "has none",
        where=place,
        fix="give the teacher a whole conversation in the column of data.columns.teacher_prompt",
    )
