"""The prompts of a run's tasks (``[tasks.NAME]``), as the student reads them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any

from teacher_proto.errors import ConfigurationError, first_line

from student_trainer.data.columns import COLUMNS, OPTIONAL, Columns
from student_trainer.data.digest import episode_identity
from student_trainer.data.files.rows import read_rows
from student_trainer.data.files.source import PlacedRows, Source
from student_trainer.data.prompts import PromptSets, prompt_sets, prompts_of_rows
from student_trainer.data.rendering import PromptReader, Reading, run_clock
from student_trainer.data.teacher_names import TeacherNames
from student_trainer.rollout.base import PromptItem
from student_trainer.settings.data import ColumnSettings, DataSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.tasks import Read, Split, Task
from student_trainer.tasks.base import named_in_errors
from student_trainer.tasks.environment import ActingTask

log = logging.getLogger(__name__)


def load_task_prompts(config: TrainConfig, tokenizer: Any, *, now: str = "") -> PromptSets:
    """Reads and renders the prompts of every task. Held-out prompts are those of each task in
    turn; a train prompt that any task holds out is left out.

    Args:
        tokenizer: the student's, of transformers.
        now: the run's clock (``run_clock``); empty for ``data.now``, or this moment.

    Raises:
        ConfigurationError: a task cannot give its prompts, or as ``load_prompts``.
    """
    assert config.tasks is not None, "there are tasks"
    reader = PromptReader(tokenizer, config.data, now or run_clock(config.data))
    read: dict[str, Reading] = {}
    teachers = list(config.named_teachers)
    found: dict[Split, list[list[PromptItem]]] = {"train": [], "held_out": []}
    notes: list[str] = []
    dropped = 0
    for number, (name, task) in enumerate(config.tasks.items()):
        of_task = _Reader(name, task, config.data, teachers)
        for split, prompts in found.items():
            some, left_out, more = of_task.read(split, reader, read)
            prompts.append([replace(prompt, file=number, task=name) for prompt in some])
            dropped += left_out
            notes += more
    held_out = [p for p in chain.from_iterable(zip_longest(*found["held_out"])) if p is not None]
    train, said = _without(held_out, found["train"], list(config.tasks))
    return prompt_sets(
        train,
        held_out,
        dropped,
        config.shares,
        [*notes, *said],
        teachers,
        read,
        reader,
        turn=config.turn,
        acting=[name for name, task in config.tasks.items() if isinstance(task, ActingTask)],
    )


class _Reader:
    """Reads the prompts of one task."""

    def __init__(
        self, name: str, task: Task, settings: DataSettings, teachers: Sequence[str]
    ) -> None:
        self._name = name
        self._task = task
        self._section = f"tasks.{name}"
        own = {one: one for one in OPTIONAL if one != "teacher"}
        if settings.teacher_prompt_template is not None:
            del own["teacher_prompt"]
        self._settings = settings.model_copy(update={"columns": ColumnSettings(**own)})
        only = teachers[0] if len(teachers) == 1 else None
        self._teachers = teachers, task.teacher or settings.teacher or only

    def read(
        self, split: Split, reader: PromptReader, read: dict[str, Reading]
    ) -> tuple[list[PromptItem], int, list[str]]:
        """The prompts of a split, how many were dropped, and notes."""
        if split == "train" and not self._task.weight:
            return [], 0, []
        what = "held-out prompts" if split == "held_out" else "prompts to train on"
        found = self._rows(split, what)
        first = next(found, None)
        if first is None:
            if split == "train":
                raise ConfigurationError(
                    "the task gives no prompt to train on",
                    where=self._section,
                    fix="check its settings, or leave the task out",
                )
            return [], 0, []
        prompts, dropped, notes = prompts_of_rows(
            chain([first], found),
            f"{self._section}, {what},",
            self._settings,
            reader,
            read,
            Columns(self._settings.columns, self._section, of_task=True),
            TeacherNames(*self._teachers, self._section),
            keep_rows=True,
        )
        if isinstance(self._task, ActingTask):
            prompts = [_of_episode(prompt, read) for prompt in prompts]
        return prompts, dropped, notes

    def _rows(self, split: Split, what: str) -> PlacedRows:
        try:
            with named_in_errors(self._name):
                for place, row in self._task.prompts(split, self._dataset):
                    yield self._checked(f"{self._section}, {place}", row)
        except ConfigurationError:
            raise
        except Exception as error:  # of a class of a user's own, or of a library
            raise ConfigurationError(
                f"giving its {what} raises {type(error).__name__}: {error}",
                where=self._section,
                fix="mend the task's method `prompts`, or its settings",
            ) from error

    def _checked(self, place: str, row: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        there = [name for name in COLUMNS if isinstance(row, Mapping) and row.get(name) is not None]
        if len(there) == 1:
            judged = self._task.verifies or isinstance(self._task, ActingTask)
            return place, _as_json_says_it(place, row) if judged else row
        raise ConfigurationError(
            f"a row of a task has one of {', '.join(COLUMNS)}, and this one has "
            f"{' and '.join(there) or 'none'}",
            where=place,
            fix='write {"messages": [{"role": "user", "content": "..."}]} or {"prompt": "..."}, or '
            "name the column in the task's settings",
        )

    @property
    def _dataset(self) -> Read:
        def read(
            name: str,
            setting: str,
            *,
            subset: str | None = None,
            split: str = "train",
            revision: str | None = None,
        ) -> Iterator[tuple[str, Mapping[str, Any]]]:
            source = Source(name, f"{self._section}.{setting}", subset, split, revision)
            return read_rows(source)

        return read


def _of_episode(prompt: PromptItem, read: dict[str, Reading]) -> PromptItem:
    """The prompt of a task that acts, told apart by its row too; how it is read is added to
    ``read``."""
    name = episode_identity(prompt.prompt_id, prompt.row or {})
    read.setdefault(name, read[prompt.prompt_id])
    return replace(prompt, prompt_id=name)


def _as_json_says_it(place: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row. Raises ConfigurationError where the process that it is sent to would get
    another one."""
    whole = dict(row)
    try:
        why = "a tuple becomes a list, and a key a text"
        same = json.loads(json.dumps(whole, allow_nan=False)) == whole
    except (RecursionError, TypeError, ValueError) as error:
        same, why = False, first_line(error)
    if same:
        return row
    raise ConfigurationError(
        f"the row is not what JSON says of it, and it goes to another process as JSON: {why}",
        where=place,
        fix="give texts, finite numbers, booleans, None, lists, and dictionaries whose keys are "
        "texts",
    )


def _without(
    held_out: Sequence[PromptItem], of_tasks: Sequence[Sequence[PromptItem]], names: Sequence[str]
) -> tuple[list[PromptItem], list[str]]:
    """The train prompts that are not held out, task after task, and a sentence on the others, and
    on episodes that begin as held-out ones do.

    Raises:
        ConfigurationError: nothing is left of a task.
    """
    never = {prompt.prompt_id for prompt in held_out}
    begins = {(prompt.task, prompt.token_ids.tobytes()) for prompt in held_out}
    train: list[PromptItem] = []
    said: list[str] = []
    for name, prompts in zip(names, of_tasks, strict=True):
        kept = [prompt for prompt in prompts if prompt.prompt_id not in never]
        if prompts and not kept:
            raise ConfigurationError(
                f"all of its {len(prompts)} prompts to train on are held out too",
                where=f"tasks.{name}",
                fix="give other prompts to train on",
            )
        if len(kept) < len(prompts):
            said.append(
                f"tasks.{name}: {len(prompts) - len(kept)} of {len(prompts)} prompts to train on "
                "are held out too, and are left out of the training"
            )
        alike = sum((name, prompt.token_ids.tobytes()) in begins for prompt in kept)
        if alike:
            said.append(
                f"tasks.{name}: {alike} of {len(kept)} prompts to train on read as held-out ones "
                "do, and other parts of their rows differ: they count as other episodes"
            )
        train += kept
    return train, said
