"""A row with its prompt, its teacher and what only that one reads, from text to token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ChatPrompt, SpecialTokens, TextPrompt

from student_trainer.data import digest
from student_trainer.data.rendering import (
    Draft,
    PromptReader,
    Reading,
    RowRefusedError,
    TemplateRefusedError,
)
from student_trainer.rollout.base import PromptItem
from student_trainer.settings.data import DataSettings

ENCODED_AT_ONCE = 1024


@dataclass(frozen=True)
class Row:
    """A row of a dataset.

    Attributes:
        draft: its prompt.
        teacher: name of the one that scores it.
        only_teacher: what only the teacher reads; None where it reads the prompt.
        for_teacher: the same as the student would read it; None also where it refuses it.
        kept: the whole row, where its prompt is to keep it.
    """

    draft: Draft
    teacher: str
    only_teacher: TextPrompt | ChatPrompt | None
    for_teacher: Draft | None
    kept: Mapping[str, Any] | None = None


def draft_for_teacher(
    prompt: TextPrompt | ChatPrompt | None, place: str, reader: PromptReader
) -> Draft | None:
    """What only the teacher reads, as the student would read it; None where there is nothing, or
    the student's chat template refuses it, which a teacher that renders it itself need not."""
    if prompt is None:
        return None
    try:
        return reader.draft(prompt, f"{place}, what only the teacher reads")
    except TemplateRefusedError:
        return None


def readings(
    rows: Iterator[Row], reader: PromptReader
) -> Iterator[tuple[Row, Reading | RowRefusedError, Reading | RowRefusedError | None]]:
    """Each row with its reading, and with that of what only its teacher reads; many of them are
    encoded at once. The error of a row comes after the rows before it."""
    chunk: list[Row] = []
    failure: ConfigurationError | None = None
    while failure is None:
        try:
            for row in islice(rows, ENCODED_AT_ONCE):
                chunk.append(row)
        except ConfigurationError as error:
            failure = error
        if not chunk:
            break
        only = [row.for_teacher for row in chunk if row.for_teacher is not None]
        readings = list(reader.read([*(row.draft for row in chunk), *only]))
        of_teacher = iter(readings[len(chunk) :])
        for row, reading in zip(chunk, readings, strict=False):
            yield row, reading, None if row.for_teacher is None else next(of_teacher)
        chunk = []
    if failure is not None:
        raise failure


def prompt_item(
    reading: Reading,
    row: Row,
    for_teacher: Reading | None,
    settings: DataSettings,
    reader: PromptReader,
) -> PromptItem:
    bare = settings.add_bos == "never"
    item = PromptItem(
        digest.prompt_identity(reading.reference_ids),
        reading.token_ids,
        reading.source,
        place=row.draft.place,
        thinking=reading.thinking,
        special_tokens=SpecialTokens.AS_WRITTEN if bare else SpecialTokens.ADD,
        begin_ids=reader.begin_ids if settings.add_bos == "always" else (),
        teacher=row.teacher,
        row=row.kept,
    )
    if row.only_teacher is None:
        return item
    if for_teacher is None:  # the student's template refuses it
        at_run = _at_clock(row.only_teacher, reader.now)
        only = replace(item, source=at_run, token_ids=item.token_ids[:0])
    else:
        only = replace(
            item,
            source=for_teacher.source,
            token_ids=for_teacher.token_ids,
            thinking=for_teacher.thinking,
        )
    return replace(item, for_teacher=only)


def _at_clock(prompt: TextPrompt | ChatPrompt, now: str) -> TextPrompt | ChatPrompt:
    return replace(prompt, now=now) if isinstance(prompt, ChatPrompt) else prompt
