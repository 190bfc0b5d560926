"""What a task is: a class whose fields are its settings, which gives prompts and judges the
responses to them.

    class Sums(Task):
        count: PositiveInt = Field(default=1000, description="Prompts to train on.")

        def prompts(self, split: Split, read: Read) -> Iterator[PlacedRow]:
            draw = random.Random(f"sums {split}")
            for number in range(self.count):
                a, b = draw.randrange(100), draw.randrange(100)
                yield f"sum {number}", {"prompt": f"{a} + {b} =", "answer": a + b}

        def verify(self, row: Row, response: str) -> Verdict:
            return Verdict(float(response.strip() == str(row["answer"])))

A task belongs to a configuration as ``[tasks.NAME]``. Its prompts are read in the trainer's
process. Its responses are judged in a process of their own, which makes the same object from the
same settings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field, model_validator
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings_types import (
    NonNegative,
    PathOrName,
    Settings,
    called_by_its_name,
)

Split = Literal["train", "held_out"]
# What the data layer and the verifier read of one prompt. JSON can say it: it goes to another
# process.
Row = Mapping[str, Any]
# The place that errors name, such as "prompts.jsonl, line 3", and the row.
PlacedRow = tuple[str, Row]
# The score of a response that is right.
RIGHT = 1.0
# What the name of a further value consists of: it is part of a metric's. Names of one task.
VALUE_NAME, MAX_VALUES = re.compile("[a-z0-9_]+"), 32
# Begins the names of values that are told of every episode (rollout/episode.py).
OF_EPISODES = "episode_"


@dataclass(frozen=True)
class Verdict:
    """What a verifier finds of one response.

    Attributes:
        score: in [0, 1]; a response is right where it is 1. None where the verifier cannot
            judge it.
        reason: why it cannot, in words; empty where it can.
        values: further numbers of a response, by names that metrics show, such as the share of
            its steps that are right. Finite. At most MAX_VALUES names in all verdicts of a task,
            of small letters, digits and ``_``. None begins with ``episode_``: those tell how
            episodes went, and count among the names of a task that acts.
    """

    score: float | None
    reason: str = ""
    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.score is None:
            if not self.reason:
                raise ValueError("a verdict without a score has a reason")
        elif not 0 <= self.score <= RIGHT:
            raise ValueError(f"a score is in [0, 1], and this one is {self.score}")
        if not isinstance(self.reason, str):
            raise TypeError(f"a reason is a text, and this one is a {type(self.reason).__name__}")
        if not isinstance(self.values, Mapping):
            raise TypeError(f"values have names, and these are a {type(self.values).__name__}")
        if len(self.values) > MAX_VALUES:
            raise ValueError(f"it has {len(self.values)} values, and may have {MAX_VALUES}")
        for name, value in self.values.items():
            if not (isinstance(name, str) and VALUE_NAME.fullmatch(name)):
                raise ValueError(f"the name {name!r} of a value is not of a-z, 0-9 and _ alone")
            if name.startswith(OF_EPISODES):
                raise ValueError(f"the name {name!r} is one of those that tell how episodes went")
            if not math.isfinite(value):
                raise ValueError(f"the value {name!r} is {value}, which is not finite")

    @property
    def right(self) -> bool:
        """Whether the response is judged, and right."""
        return self.score is not None and self.score >= RIGHT


class Read(Protocol):
    """Reads the rows of a file (`.jsonl`, `.json`, `.parquet`), a folder or a dataset on the hub,
    as ``data.train`` names it."""

    def __call__(
        self,
        name: str,
        setting: str,
        *,
        subset: str | None = None,
        split: str = "train",
        revision: str | None = None,
    ) -> Iterator[PlacedRow]:
        """
        Args:
            setting: the task's own setting that has the name, for errors.

        Raises:
            ConfigurationError: it cannot be read.
        """
        ...


@contextmanager
def named_in_errors(name: str) -> Iterator[None]:
    """A task does not know what the run calls it: an error about ``tasks`` is one about
    ``tasks.NAME``."""
    try:
        yield
    except ConfigurationError as error:
        if error.where != "tasks":
            raise
        where = f"tasks.{name}"
        raise ConfigurationError(error.what, where=where, fix=error.fix) from error


class Task(Settings):
    """A task of the run.

    Attributes:
        verifies: whether it judges responses. One that does not has prompts alone.
        file_bytes: of a file that what runs in its process may write, where that is more than a
            MiB.
    """

    verifies: ClassVar[bool] = True
    file_bytes: ClassVar[int] = 0

    kind: str = ""
    weight: NonNegative = Field(
        default=1.0,
        description="Share of the prompts of a run that are this task's, relative to the weights "
        "of the other tasks; 0: the run is evaluated on it and not trained on it.",
    )
    teacher: PathOrName | None = Field(
        default=None,
        description="Of several teachers, the one that scores the responses to its prompts; "
        "unset, that of `data.teacher`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _called_by_its_name(cls, values: Any) -> Any:
        """A class without a kind of its own is called by its dotted name."""
        return called_by_its_name(cls, values)

    def for_a_process(self) -> Task:
        """The task as a process of its own gets it: with what is not found there, such as what
        variables of the trainer's environment say."""
        return self

    def prepare(self) -> None:
        """Imports and reads what the task needs, before its first prompt and, in the process that
        judges, before its first response.

        Raises:
            ConfigurationError: something is not installed, or the settings name what there is
                not.
        """

    def prompts(self, split: Split, read: Read) -> Iterator[PlacedRow]:
        """The rows of one split, always the same in the same order; none where it has no such
        split.

        A row has ``messages``, a conversation that ends before the assistant's turn, or
        ``prompt``, a text that is used as it is; and, if it likes, ``system``, ``tools``,
        ``template_arguments`` and ``teacher_prompt``, which mean what the columns of these names
        mean in a file of prompts (docs/data.md). Everything else of it is for ``verify``.

        Args:
            read: reads datasets.

        Raises:
            ConfigurationError: a dataset cannot be read, or a row lacks something.
        """
        raise NotImplementedError

    def verify(self, row: Row, response: str) -> Verdict:
        """Judges one response. It depends on its arguments and the settings alone.

        Args:
            row: the prompt's, as ``prompts`` gave it.
            response: what the student wrote, without the token that ended it and without special
                tokens. Any text: empty, very long, with NUL characters, cut in a word.
        """
        raise NotImplementedError
