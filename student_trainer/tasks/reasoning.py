"""Questions that the package reasoning-gym makes on the spot, and its verifiers.

A family is one of its generators, such as ``chain_sum``; its parameters say how hard the questions
are. The verifier's process makes the question again, from the same seed, so that a family may keep
anything in it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field, field_validator
from teacher_proto.errors import ConfigurationError, first_line
from teacher_proto.program.distribution import install_command
from teacher_proto.program.settings_types import Count, PositiveInt

from student_trainer.tasks.base import PlacedRow, Read, Row, Split, Task, Verdict
from student_trainer.tasks.datasets import asked

INSTRUCTION = "\n\nGive your final answer between <answer> and </answer>."
BEGIN, END = "<answer>", "</answer>"
EVALUATES = "its verifier runs the answer as Python (eval)"
PARSES = "its verifier gives the answer to sympy's parse_expr, which runs it as Python (eval)"
# Families that are refused because the student's text would be run as a program, and why.
RUNS_TEXT = {
    "binary_matrix": EVALUATES,
    "n_queens": EVALUATES,
    "spiral_matrix": EVALUATES,
    "string_insertion": EVALUATES,
    "countdown": PARSES,
    "intermediate_integration": PARSES,
    "polynomial_multiplication": PARSES,
    "puzzle24": PARSES,
    "simple_integration": PARSES,
    "composite": "it is made of other families, of which some are refused",
}
HASHES = "its questions depend on Python's hash seed, so that every process has others"
# Families that are refused because they do not make the same questions again, and why.
UNSTABLE = {
    "codeio": "it runs programs to find the right answers, and some of them draw random numbers",
    "isomorphic_strings": HASHES,
    "list_functions": "it draws from Python's global random numbers, so that questions differ from "
    "one reading to the next",
    "ransom_note": HASHES,
}
SLOW = {"knight_swap": "one of its questions can take longer to make than a response to judge"}
REFUSED = {**RUNS_TEXT, **UNSTABLE, **SLOW}
# What the task sets of a family's parameters, and which of its settings say it.
OWN_PARAMETERS = {
    "seed": "seed",
    "size": "prompts_to_train and prompts_held_out",
}
# Numbers of neighbouring seeds are the same questions in reasoning-gym, one place further.
APART, SEEDS = 1_000_003, 2**31


class ReasoningTask(Task):
    """Questions of a family of the package reasoning-gym, made on the spot without a network, and
    judged by the family's own verifier."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    family: str = Field(
        min_length=1,
        description="Name of the family, such as `chain_sum`, `spell_backward` or `gcd`.",
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="The family's own parameters, which say how hard its questions are, such as "
        "`{min_terms = 2, max_terms = 3}` of `chain_sum`. Not `seed` and `size`: the task sets "
        "them.",
    )
    prompts_to_train: PositiveInt = Field(
        default=2000, description="Questions to train on; a run goes over them again and again."
    )
    prompts_held_out: Count = Field(
        default=200, description="Other questions, to evaluate on; 0 for none."
    )
    seed: Count = Field(
        default=0,
        description="Seed of the questions. It is not that of the run, so that runs with several "
        "seeds have the same questions.",
    )
    instruction: str = Field(
        default=INSTRUCTION, description="Text that follows the question in the prompt."
    )
    extract: Literal["tag", "last_line", "whole"] = Field(
        default="tag",
        description="What of a response is the answer: what stands in its last `<answer>` and "
        "`</answer>`, its last line, or all of it. White space around it does not count.",
    )
    form: Literal["chat", "text"] = Field(
        default="chat",
        description="Whether the prompt is the user's turn of a conversation, or a text that is "
        "used as it is, without the chat template.",
    )

    @field_validator("parameters")
    @classmethod
    def _leaves_the_tasks_own(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        for name, settings in OWN_PARAMETERS.items():
            if name in parameters:
                raise ValueError(
                    f"{name} is set by the task and not in parameters: remove it, and set "
                    f"{settings} of the task"
                )
        return parameters

    def prepare(self) -> None:
        """As ``Task.prepare``; makes one question."""
        self._questions()[0]

    def prompts(self, split: Split, read: Read) -> Iterator[PlacedRow]:
        """As ``Task.prompts``; a row also has ``index`` and ``question``. Held-out questions come
        first in the generator's order, so that they stay when more are trained on."""
        held_out = self.prompts_held_out
        chosen = range(held_out, held_out + self.prompts_to_train)
        for index in range(held_out) if split == "held_out" else chosen:
            place, question = f"question {index}", self._questions()[index]["question"]
            prompt = asked(question, self.instruction, self.form, "question", place)
            yield place, {**prompt, "index": index, "question": question}

    def verify(self, row: Row, response: str) -> Verdict:
        """As ``Task.verify``: the family's own score, from 0 to 1."""
        questions, index = self._questions(), int(row["index"])
        entry = questions[index]
        if entry["question"] != row["question"]:
            return Verdict(None, "the generator makes another question than it did before")
        return Verdict(float(questions.score_answer(self.answer_of(response), entry)))

    def answer_of(self, response: str) -> str | None:
        """The answer in a response; None where there is none."""
        if self.extract == "tag":
            end = response.rfind(END)
            begin = response.rfind(BEGIN, 0, max(end, 0))
            return response[begin + len(BEGIN) : end].strip() if 0 <= begin < end else None
        lines = response.strip().splitlines() if self.extract == "last_line" else [response]
        return lines[-1].strip() if lines else None

    def _questions(self) -> Any:
        text = json.dumps(self.parameters, sort_keys=True)
        size = self.prompts_held_out + self.prompts_to_train
        return _questions(self.family, text, self.seed * APART % SEEDS, size)


@lru_cache(maxsize=64)
def _questions(family: str, parameters: str, seed: int, size: int) -> Any:
    """The generator of a family.

    Raises:
        ConfigurationError: reasoning-gym is not installed, there is no such family, it is refused,
            or it does not take the parameters.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigurationError(
            f"tasks of the kind reasoning_gym need the package reasoning-gym: {error}",
            where="tasks",
            fix=install_command("tasks"),
        ) from error
    if family in REFUSED:
        raise ConfigurationError(
            f"the family {family!r} is refused: {REFUSED[family]}",
            where="tasks",
            fix="choose another family",
        )
    if family not in DATASETS:
        there = sorted(set(DATASETS) - set(REFUSED))
        close = difflib.get_close_matches(family, there, n=1)
        raise ConfigurationError(
            f"reasoning-gym has no family {family!r}",
            where="tasks",
            fix=f"{f'did you mean {close[0]}? ' if close else ''}there are {', '.join(there)}",
        )
    try:
        return reasoning_gym.create_dataset(
            family, **{**json.loads(parameters), "seed": seed, "size": size}
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the family {family!r} does not take these parameters: {first_line(error)}",
            where="tasks",
            fix="correct the task's parameters",
        ) from error
