"""Mathematics from a dataset with a column of answers, judged by math-verify."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.distribution import install_command
from teacher_proto.program.settings_types import PathOrName

from student_trainer.tasks.base import PlacedRow, Read, Row, Split, Verdict
from student_trainer.tasks.datasets import DatasetTask, asked, required

INSTRUCTION = "\n\nReason step by step, and put your final answer within \\boxed{}."

# A dollar that delimits LaTeX; the one of `\$5` does not.
_DOLLAR = re.compile(r"(?<!\\)\$")
# Such as "1,000 dollars", which as LaTeX would be a set of products of letters.
_THOUSANDS_OF_A_UNIT = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?(\s+[A-Za-z]+)+")


class MathTask(DatasetTask):
    """Questions of a dataset with a right answer each, a number or an expression. math-verify
    judges whether a response ends with it."""

    kind: Literal["math"] = "math"
    question: PathOrName = Field(default="question", description="Column of the question, a text.")
    answer: PathOrName = Field(
        default="answer",
        description="Column of the right answer: a text, which may be LaTeX, or a number; of a "
        "list of these, all of them, joined by commas.",
    )
    answer_after: str | None = Field(
        default=None,
        min_length=1,
        description="Text of the answer's column after whose last occurrence the answer stands, "
        'such as `"####"` of GSM8K; unset, the whole column is the answer.',
    )
    instruction: str = Field(
        default=INSTRUCTION, description="Text that follows the question in the prompt."
    )
    form: Literal["chat", "text"] = Field(
        default="chat",
        description="Whether the prompt is the user's turn of a conversation, or a text that is "
        "used as it is, without the chat template.",
    )

    def prepare(self) -> None:
        """As ``Task.prepare``."""
        _math_verify()

    def prompts(self, split: Split, read: Read) -> Iterator[PlacedRow]:
        """As ``Task.prompts``; a row also has ``answer``."""
        for place, row in self.rows(split, read):
            question = required(row, self.question, place, "question")
            given = required(row, self.answer, place, "answer")
            answer = ", ".join(map(str, given)) if isinstance(given, list) else str(given)
            if self.answer_after is not None:
                _, mark, answer = answer.rpartition(self.answer_after)
                if not mark:
                    raise ConfigurationError(
                        f"the column {self.answer!r} has no {self.answer_after!r}",
                        where=place,
                        fix="leave the row out, or correct answer_after of the task",
                    )
            prompt = asked(question, self.instruction, self.form, self.question, place)
            yield place, {**prompt, "answer": answer.strip()}

    def verify(self, row: Row, response: str) -> Verdict:
        """As ``Task.verify``: 1 where math-verify finds the expression that the response ends with,
        or boxes, equal to the answer, else 0."""
        found = _math_verify()
        right = _parsed(str(row["answer"]))
        if not right:
            return Verdict(None, f"math-verify cannot read the right answer {row['answer']!r}")
        said = found.parse(response, parsing_timeout=None)
        try:
            same = found.verify(right, said, timeout_seconds=None, raise_on_error=True)
        except MemoryError:
            raise
        except Exception as error:  # of sympy, of any kind
            return Verdict(None, f"math-verify cannot compare: {type(error).__name__}: {error}")
        return Verdict(float(bool(same)))


@lru_cache(maxsize=1024)
def _parsed(answer: str) -> Any:
    """The right answer as math-verify reads it, as LaTeX or as it is; empty where it cannot."""
    parse = _math_verify().parse
    delimited = _DOLLAR.search(answer) or "\\boxed" in answer
    as_it_is = delimited or _THOUSANDS_OF_A_UNIT.fullmatch(answer)
    in_latex = [] if as_it_is else parse(f"${answer}$", parsing_timeout=None)
    return in_latex or parse(answer, parsing_timeout=None)


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    try:
        import math_verify
    except ImportError as error:
        raise ConfigurationError(
            f"tasks of the kind math need the package math-verify: {error}",
            where="tasks",
            fix=install_command("tasks"),
        ) from error
    return math_verify
