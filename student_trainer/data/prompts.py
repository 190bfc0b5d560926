"""Prompts from the rows of a dataset, as the student reads them.

A row is ``{"messages": [...]}`` or ``{"prompt": [...]}``, a conversation that ends before
the assistant's turn, or ``{"prompt": "text"}``, which is used as it is: special tokens
that are written out are recognised, and ``data.add_bos`` decides about the one that begins
a text. ``data.columns`` names other columns; the further ones are ignored, and said to be.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ChatPrompt, Prompt, TextPrompt

from student_trainer.data import digest
from student_trainer.data.columns import AnswerColumn, Columns
from student_trainer.data.conversations import row_prompt
from student_trainer.data.files.rows import read_rows
from student_trainer.data.files.source import PlacedRows, Source
from student_trainer.data.order import PromptOrder, held_out_of
from student_trainer.data.progress import told
from student_trainer.data.rendering import (
    PromptReader,
    Reading,
    RowRefusedError,
    run_clock,
)
from student_trainer.data.teacher_names import TeacherNames
from student_trainer.data.teacher_prompts import teacher_prompt
from student_trainer.data.teacher_rows import Row, draft_for_teacher, prompt_item, readings
from student_trainer.data.templates import templates_as_json, unread
from student_trainer.rollout.base import PromptItem
from student_trainer.settings.data import DataFile, DataSettings, files
from student_trainer.settings.teacher import ONLY_TEACHER

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptSets:
    """Prompts to train on and prompts never trained on.

    Attributes:
        dropped: how many prompts were left out because of ``max_prompt_tokens``, because the
            student's chat template refused them, or because they are empty.
        shares: of each train file or task in the prompts of a run; empty where none is set.
        notes: what is in the data and not used, one sentence each.
        left_out: indices of the train prompts that the teacher cannot read. They keep their
            places in the order of training, which is that of all.
        digest: of the train prompts in their order (``data/digest.py``).
        now: the run's clock, at which they are rendered.
        arguments: names of the template arguments that any prompt has, sorted.
        turn: how many prompts in a row of the order of training are of one task.
    """

    train: list[PromptItem]
    held_out: list[PromptItem]
    dropped: int = 0
    shares: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: frozenset[int] = frozenset()
    digest: str = ""
    now: str = ""
    arguments: tuple[str, ...] = ()
    turn: int = 1

    def first(self, seed: int, teacher: str | None = None) -> PromptItem:
        """The first prompt of the order of training, or the first that this teacher scores."""
        order = PromptOrder.of(seed, self.train, self.shares, self.left_out, turn=self.turn)
        taken = (self.train[order.take(position, 1)[0]] for position in count())
        return next(prompt for prompt in taken if teacher in (None, prompt.teacher))


def load_prompts(
    settings: DataSettings,
    tokenizer: Any,
    *,
    seed: int = 0,
    now: str = "",
    teachers: Sequence[str] = (ONLY_TEACHER,),
) -> PromptSets:
    """Reads and renders the prompts.

    Args:
        tokenizer: the student's, of transformers.
        now: the run's clock (``run_clock``); empty for ``data.now``, or this moment.
        teachers: names of the run's teachers.

    Raises:
        ConfigurationError: a dataset is missing, empty or malformed (the line is
            named), a prompt is too long, a prompt is in both sets, a row names a teacher that
            there is not, or no train prompt names one that there is.
    """
    reader = PromptReader(tokenizer, settings, now or run_clock(settings))
    read: dict[str, Reading] = {}
    train, dropped, notes = _read_files(
        files(settings.train), False, settings, reader, read, teachers
    )
    if settings.held_out is not None:
        held_out, held_out_dropped, more = _read_files(
            files(settings.held_out), True, settings, reader, read, teachers
        )
        dropped += held_out_dropped
        notes += more
        shared = {p.prompt_id for p in train} & {p.prompt_id for p in held_out}
        if shared:
            raise ConfigurationError(
                f"{len(shared)} prompts are also in the train file, "
                f"one is {_show(held_out, shared)}",
                where="data.held_out",
                fix="remove them from one of the files",
            )
    else:
        train, held_out = held_out_of(train, settings.held_out_fraction, seed)
    if not train:
        raise ConfigurationError("no prompt is left to train on", where="data.train")
    left = {prompt.file for prompt in train}
    for number, one in enumerate(files(settings.train) if settings.shares else ()):
        if number not in left:
            raise ConfigurationError(
                f"no prompt of {one.file} is left to train on, and it has a weight",
                where=f"data.train[{number}]",
                fix="leave the file out, or lower data.held_out_fraction",
            )
    return prompt_sets(train, held_out, dropped, settings.shares, notes, teachers, read, reader)


def prompt_sets(
    train: list[PromptItem],
    held_out: list[PromptItem],
    dropped: int,
    shares: tuple[float, ...],
    notes: Sequence[str],
    teachers: Sequence[str],
    read: Mapping[str, Reading],
    reader: PromptReader,
    turn: int = 1,
    acting: Collection[str] = (),
) -> PromptSets:
    """The prompts of a run, with everything that is known of all of them together.

    Args:
        notes: on what was read.
        read: how each train prompt is read, by its identity.
        acting: names of the tasks whose responses are episodes.

    Raises:
        ConfigurationError: no train prompt names one of the teachers.
    """
    check_teachers_have_prompts(train, teachers)
    every = [(p.source, p.token_ids) for p in (*train, *held_out)]
    arguments = template_arguments([source for source, _ in every])
    said = [*notes, *reader.notes(every, arguments)]
    chats = [source for source, _ in every if isinstance(source, ChatPrompt)]
    said += unread(chats, lambda chat: reader.render(chat, ""))
    return PromptSets(
        train,
        held_out,
        dropped,
        shares,
        tuple(dict.fromkeys(said)),
        digest=_digest(train, shares, read, reader, acting),
        now=reader.now,
        arguments=arguments,
        turn=turn,
    )


def check_teachers_have_prompts(train: Sequence[PromptItem], teachers: Sequence[str]) -> None:
    """Raises ConfigurationError for a teacher that scores none of the train prompts."""
    idle = [name for name in teachers if name not in {prompt.teacher for prompt in train}]
    if idle:
        raise ConfigurationError(
            f"no train prompt names teacher {idle[0]}",
            where=f"teachers.{idle[0]}",
            fix="leave the teacher out, or name it in the column of data.columns.teacher or in "
            "data.teacher",
        )


def _digest(
    train: Sequence[PromptItem],
    shares: Sequence[float],
    read: Mapping[str, Reading],
    reader: PromptReader,
    acting: Collection[str],
) -> str:
    chats = any(isinstance(p.source, ChatPrompt) for p in train)
    counts = Counter(prompt.file for prompt in train)
    return digest.prompts_digest(
        [(p.source, read[p.prompt_id].reference_ids) for p in train],
        templates_as_json(reader.tokenizer) if chats else "",
        shares=[(counts[file], share) for file, share in enumerate(shares)],
        clock=chats and reader.reads_clock,
        begun=sum(read[p.prompt_id].begun for p in train),
        of_teachers=_of_teachers(train),
        answers=[p.response for p in train if p.response is not None],
        episodes=[p.prompt_id for p in train if p.task in acting],
    )


def _of_teachers(train: Sequence[PromptItem]) -> list[tuple[str, Prompt | None]]:
    found = [(p.teacher, p.for_teacher.source if p.for_teacher else None) for p in train]
    return found if any(one != (ONLY_TEACHER, None) for one in found) else []


def template_arguments(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """Names of the template arguments that any of the prompts has, sorted."""
    chats = [source for source in prompts if isinstance(source, ChatPrompt)]
    return tuple(sorted({name for chat in chats for name in chat.template_arguments}))


def _read_files(
    chosen: Sequence[DataFile],
    held_out: bool,
    settings: DataSettings,
    reader: PromptReader,
    read: dict[str, Reading],
    teachers: Sequence[str],
) -> tuple[list[PromptItem], int, list[str]]:
    """The prompts of files, one file after another, how many were dropped, and notes. How each
    prompt is read is added to ``read``, by the prompt's identity."""
    key, split = "data.train", settings.train_split
    if held_out:
        key, split = "data.held_out", settings.held_out_split
    default = settings.teacher or (teachers[0] if len(teachers) == 1 else None)
    prompts: list[PromptItem] = []
    dropped = 0
    notes: list[str] = []
    for number, one in enumerate(chosen):
        where = f"{key}[{number}]" if len(chosen) > 1 else key
        source = Source(one.file, where, settings.subset, split, settings.revision)
        found, too_long, more = prompts_of_rows(
            read_rows(source),
            one.file,
            settings,
            reader,
            read,
            Columns(settings.columns, where),
            TeacherNames(teachers, default, where),
            answered=not held_out,
        )
        prompts += [replace(prompt, file=number) for prompt in found]
        dropped += too_long
        notes += more
    return prompts, dropped, notes


def prompts_of_rows(
    found: PlacedRows,
    name: str,
    settings: DataSettings,
    reader: PromptReader,
    read: dict[str, Reading],
    columns: Columns,
    names: TeacherNames,
    *,
    answered: bool = False,
    keep_rows: bool = False,
) -> tuple[list[PromptItem], int, list[str]]:
    """The prompts of one dataset, how many were dropped, and notes. How each prompt is read is
    added to ``read``, by the prompt's identity.

    Args:
        found: its rows.
        name: of the dataset, for messages; ``columns.key`` is the setting that names it.
        answered: whether rows have answers to learn from.
        keep_rows: whether every prompt keeps its row.

    Raises:
        ConfigurationError: as ``load_prompts``.
    """
    prompts: list[PromptItem] = []
    dropped = refused = 0
    answers = AnswerColumn(columns) if answered and settings.columns.response else None

    def leave_out(error: RowRefusedError) -> None:
        nonlocal refused
        if settings.refused == "error":
            raise error
        log.warning("left out, %s", error)
        refused += 1

    def rows() -> Iterator[Row]:
        for place, row in told(found, f"rows of {name} are read"):
            prompt = row_prompt(row, place, settings, columns)
            only = teacher_prompt(row, place, settings, columns, prompt)
            teacher = names.of(row, place, columns)
            try:
                draft = reader.draft(prompt, place)
            except RowRefusedError as error:
                leave_out(error)
                continue
            if answers is not None:
                answers.take(row, place)
            for_teacher = draft_for_teacher(only, place, reader)
            yield Row(draft, teacher, only, for_teacher, row if keep_rows else None)

    for row, reading, for_teacher in readings(rows(), reader):
        if isinstance(reading, RowRefusedError):
            leave_out(reading)
            continue
        if isinstance(for_teacher, RowRefusedError):
            leave_out(for_teacher)
            continue
        item = prompt_item(reading, row, for_teacher, settings, reader)
        if answers is not None:
            item = replace(item, response=answers.of(row.draft.place))
        if len(item.token_ids) <= settings.max_prompt_tokens:
            prompts.append(item)
            read.setdefault(item.prompt_id, reading)
        elif settings.over_long == "drop":
            dropped += 1
        else:
            raise ConfigurationError(
                f"the prompt has {len(item.token_ids)} tokens, more than "
                f"data.max_prompt_tokens ({settings.max_prompt_tokens})",
                where=row.draft.place,
                fix='raise data.max_prompt_tokens, or set data.over_long = "drop"',
            )
    notes = columns.finish()
    names.finish()
    if answers is not None:
        answers.finish()
    if not prompts:
        all_of_them = "" if refused and dropped else "all "
        whys = [f"{all_of_them}{dropped} are longer than data.max_prompt_tokens"] * bool(dropped)
        whys += [f"{all_of_them}{refused} are empty or refused by the chat template"] * bool(
            refused
        )
        why = f": {', '.join(whys)}" if whys else ""
        raise ConfigurationError(f"{name} holds no prompt to use{why}", where=columns.key)
    if refused:
        log.warning(
            "%s: left out %d of %d prompts, which are empty or the student's template refuses",
            name, refused, refused + dropped + len(prompts),
        )  # fmt: skip
    if dropped:
        log.warning(
            "%s: left out %d of %d prompts, longer than data.max_prompt_tokens (%d)",
            name, dropped, dropped + len(prompts), settings.max_prompt_tokens,
        )  # fmt: skip
    return prompts, dropped + refused, notes


def _show(prompts: Sequence[PromptItem], shared: set[str]) -> str:
    source = next(p.source for p in prompts if p.prompt_id in shared)
    text = source.text if isinstance(source, TextPrompt) else repr(source)
    return repr(text[:80])
