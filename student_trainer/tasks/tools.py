"""Questions that are answered by calling tools, turn by turn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings_types import Count, PathOrName, PositiveInt

from student_trainer.tasks.base import PlacedRow, Read, Row, Split, Verdict
from student_trainer.tasks.calling.formats import Call, calls_in, spoken
from student_trainer.tasks.calling.shop import MOST, price_list, questions
from student_trainer.tasks.calling.tool import Calculator, LookUp, Tool, ToolError
from student_trainer.tasks.datasets import DatasetTask, asked, required
from student_trainer.tasks.environment import (
    ActingTask,
    Environment,
    Observation,
    Role,
    Turn,
)

INSTRUCTION = (
    "\n\nUse the tools for what you do not know. Give your final answer between <answer> and "
    "</answer>."
)
BEGIN, END = "<answer>", "</answer>"
# Calls of one turn that are made; the others are told to be too many.
MOST_CALLS = 16
# Characters of what a tool has raised, and of the id of a call, that the student reads.
TOLD, TOLD_ID = 200, 64


class ToolsTask(DatasetTask, ActingTask):
    """Questions that are answered by calling tools: those of a dataset, or made on the spot from a
    price list that has to be looked up.

    The calls are in the form of the student's own chat template (`tools`). The episode ends with
    the first turn that calls nothing: it is right where its answer equals the question's. A task
    that extends this one may bring tools of its own (docs/environments.md).
    """

    calls_tools: ClassVar[bool] = True
    observed_as: ClassVar[tuple[Role, ...]] = ("tool",)

    kind: Literal["tools"] = "tools"
    train: PathOrName | None = Field(
        default=None,
        description="Its questions to train on, one file or dataset as `data.train` names it; "
        "unset, questions are made on the spot.",
    )
    question: PathOrName = Field(default="question", description="Column of the question, a text.")
    answer: PathOrName = Field(
        default="answer", description="Column of the right answer: a text, or a number."
    )
    answer_after: str | None = Field(
        default=None,
        min_length=1,
        description="Text of the answer's column after whose last occurrence the answer stands, "
        'such as `"####"` of GSM8K; unset, the whole column is the answer.',
    )
    tools: tuple[Literal["calculator", "look_up"], ...] = Field(
        default=("calculator", "look_up"), description="The tools that the student may call."
    )
    table: Path | None = Field(
        default=None,
        description="JSON file of one object, whose keys and texts or numbers `look_up` gives. "
        "Unset, the price list of the questions that are made on the spot.",
    )
    items: Annotated[int, Field(ge=1, le=MOST)] = Field(
        default=40, description="Things on the price list."
    )
    terms: PositiveInt = Field(
        default=2, description="Different things in the longest question that is made on the spot."
    )
    prompts_to_train: PositiveInt = Field(
        default=2000, description="Questions to train on, of those that are made on the spot."
    )
    prompts_held_out: Count = Field(
        default=200, description="Other such questions, to evaluate on; 0 for none."
    )
    seed: Count = Field(
        default=0,
        description="Seed of the price list and the questions. It is not that of the run, so that "
        "runs with several seeds have the same questions.",
    )
    instruction: str = Field(
        default=INSTRUCTION, description="Text that follows the question in the prompt."
    )

    @model_validator(mode="after")
    def _has_prompts(self) -> ToolsTask:
        """In the place of the dataset's: without one there are questions too."""
        of_dataset = self.train is not None or self.held_out is not None
        if of_dataset and self.table is None and "look_up" in self.tools:
            raise ValueError(
                "the tool look_up needs table for questions of a dataset: name a file, or set "
                'tools = ["calculator"]'
            )
        if self.weight and self.train is None and self.held_out is not None:
            raise ValueError("held_out is of a dataset, and train names none: set train too")
        return self

    def prepare(self) -> None:
        """As ``Task.prepare``; reads the table."""
        names = [tool.name for tool in self.callable()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigurationError(
                f"several tools have the name {twice[0]!r}", where="tasks", fix="rename one"
            )

    def own_tools(self) -> Sequence[Tool]:
        """Further tools, of a class that extends this one."""
        return ()

    def callable(self) -> list[Tool]:
        """Every tool that the student may call.

        Raises:
            ConfigurationError: the table cannot be read.
        """
        made = {"calculator": Calculator, "look_up": self._look_up}
        return [*(made[name]() for name in self.tools), *self.own_tools()]

    def prompts(self, split: Split, read: Read) -> Iterator[PlacedRow]:
        """As ``Task.prompts``; a row also has ``answer``."""
        schemas = [tool.schema for tool in self.callable()]
        if self.train is None and self.held_out is None:
            count = self.prompts_to_train if split == "train" else self.prompts_held_out
            made = questions(self.seed, split, self.items, self.terms, count)
            for number, (question, answer) in enumerate(made):
                place = f"question {number}"
                prompt = asked(question, self.instruction, "chat", "question", place)
                yield place, {**prompt, "tools": schemas, "answer": answer}
            return
        for place, row in self.rows(split, read):
            question = required(row, self.question, place, "question")
            answer = str(required(row, self.answer, place, "answer"))
            if self.answer_after is not None:
                _, mark, answer = answer.rpartition(self.answer_after)
                if not mark:
                    raise ConfigurationError(
                        f"the column {self.answer!r} has no {self.answer_after!r}",
                        where=place,
                        fix="leave the row out, or correct answer_after of the task",
                    )
            prompt = asked(question, self.instruction, "chat", self.question, place)
            yield place, {**prompt, "tools": schemas, "answer": answer.strip()}

    def environment(self, row: Row) -> Environment:
        """As ``ActingTask.environment``."""
        return ToolsEnvironment(self.callable(), str(row["answer"]))

    def _look_up(self) -> Tool:
        if self.table is not None:
            return LookUp(_table(str(self.table)))
        return LookUp(price_list(self.seed, self.items))


class ToolsEnvironment(Environment):
    """One question. What a tool raises, and what is no call, is told to the student as the result
    and counted."""

    def __init__(self, tools: Sequence[Tool], answer: str) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._answer = answer
        self._said = ""
        self._calls = self._failed = 0

    def act(self, turn: Turn) -> Observation:
        """As ``Environment.act``."""
        calls = calls_in(turn.raw or turn.text, turn.tool_format, opened=turn.opened)
        if not calls:
            self._said = spoken(turn.raw or turn.text, opened=turn.opened)
            return Observation(done=True)
        return Observation([self._result(call, nth) for nth, call in enumerate(calls[:MOST_CALLS])])

    def verdict(self) -> Verdict:
        """As ``Environment.verdict``."""
        right = same_answer(answer_in(self._said), self._answer)
        values = {"calls": float(self._calls), "failed_calls": float(self._failed)}
        return Verdict(float(right), values=values)

    def _result(self, call: Call, nth: int) -> dict[str, str]:
        self._calls += 1
        try:
            if nth == MOST_CALLS - 1:
                raise ToolError(f"a turn may have {MOST_CALLS - 1} calls")
            content = self._called(call)
        except ToolError as error:
            self._failed += 1
            content = f"error: {error}"
        message = {"role": "tool", "content": content, "tool_call_id": call.call_id[:TOLD_ID]}
        return {**message, "name": call.name} if call.name in self._tools else message

    def _called(self, call: Call) -> str:
        if call.problem:
            raise ToolError(f"the call cannot be read: {call.problem}")
        tool = self._tools.get(call.name)
        if tool is None:
            # Its name is not told again: what the student wrote could be a marker of turns.
            raise ToolError(f"there is no such tool; there is {', '.join(self._tools)}")
        wanted = set(tool.arguments)
        if set(call.arguments) != wanted:
            raise ToolError(f"{tool.name} takes the arguments {', '.join(sorted(wanted))}")
        given = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in call.arguments.items()
        }
        try:
            return str(tool.call(**given))
        except ToolError:
            raise
        except MemoryError:
            raise
        except Exception as error:  # of a tool of a user's own
            raise ToolError(f"{type(error).__name__}: {error!s:.{TOLD}}") from error


def answer_in(text: str) -> str:
    """What stands in the last ``<answer>`` of a text; empty where there is none."""
    end = text.rfind(END)
    begin = text.rfind(BEGIN, 0, max(end, 0))
    return text[begin + len(BEGIN) : end].strip() if 0 <= begin < end else ""


def same_answer(said: str, right: str) -> bool:
    """Whether two answers are the same number, or the same text but for case and white space."""
    numbers = [_number(text) for text in (said, right)]
    if None not in numbers:
        return numbers[0] == numbers[1]
    return bool(said) and " ".join(said.split()).casefold() == " ".join(right.split()).casefold()


def _number(text: str) -> Decimal | None:
    if len(text) > TOLD:
        return None
    try:
        found = Decimal(text.replace(",", "").replace("$", "").strip())
    except InvalidOperation:
        return None
    return found if found.is_finite() else None


@lru_cache(maxsize=8)
def _table(path: str) -> Mapping[str, str]:
    """The entries of a table. Raises ConfigurationError for what is none."""
    fix = 'write one JSON object, such as {"lamp": 12}'
    try:
        found: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"cannot read the table {path}: {error}", where="tasks", fix=fix
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(v, str | int | float) for v in found.values()
    ):
        raise ConfigurationError(
            f"the table {path} is no object of texts and numbers", where="tasks", fix=fix
        )
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()
    }
