"""The tasks of the package, with real files, real math-verify and real reasoning-gym."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from teacher_proto.errors import ConfigurationError
from teacher_proto.processes.confinement import child_environment
from teacher_proto.program.settings_types import Settings

from student_trainer.data.files.rows import read_rows
from student_trainer.data.files.source import Source
from student_trainer.settings.evaluation import VerificationSettings
from student_trainer.settings.kinds import TaskConfigs
from student_trainer.tasks import TASKS, PlacedRow, Row, Task, Verdict
from student_trainer.tasks.base import MAX_VALUES
from student_trainer.tasks.chat import ChatTask
from student_trainer.tasks.math import MathTask
from student_trainer.tasks.reasoning import RUNS_TEXT, ReasoningTask
from student_trainer.verification.verifiers import Verifiers, waited
from tests.tasks.tools import of_task


def read(
    name: str,
    setting: str,
    *,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Iterator[PlacedRow]:
    return read_rows(Source(name, f"tasks.one.{setting}", subset, split, revision))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_every_kind_is_named_as_it_calls_itself() -> None:
    assert {kind: TASKS[kind].model_fields["kind"].default for kind in TASKS} == {
        kind: kind for kind in TASKS
    }
    assert list(TASKS) == ["math", "reasoning_gym", "chat", "tools", "textworld", "alfworld"]


@pytest.mark.parametrize(
    ("score", "values"),
    [(None, {}), (1.5, {}), (-0.1, {}), (float("nan"), {}), (1.0, {"x": float("inf")})],
)
def test_a_verdict_that_cannot_be_is_refused(score: float | None, values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"score|finite"):
        Verdict(score, values=values)


@pytest.mark.parametrize("name", ["a/b", "", "x\n", "A", "a b", "é"])
def test_a_name_that_is_no_part_of_a_metrics_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        Verdict(1.0, values={name: 1.0})
    assert Verdict(1.0, values={"steps_right_2": 1.0}).right


def test_a_verdict_with_too_many_values_or_a_reason_that_is_none_is_refused() -> None:
    values = {f"n{number}": 1.0 for number in range(MAX_VALUES + 1)}
    with pytest.raises(ValueError, match=f"may have {MAX_VALUES}"):
        Verdict(1.0, values=values)
    nothing: Any = None
    with pytest.raises(TypeError, match="a reason is a text"):
        Verdict(1.0, reason=nothing)


def test_only_the_whole_score_is_right() -> None:
    assert [Verdict(score).right for score in (0.0, 0.999, 1.0)] == [False, False, True]
    assert not Verdict(None, "no").right


GSM8K = [
    {"question": "What is 6 times 7?", "answer": "6 * 7 = 42\n#### 42"},
    {"question": "What is half of 1?", "answer": "1 / 2\n#### 1/2"},
    {"question": "A thousand and one?", "answer": "#### 1,001"},
]


def test_a_dataset_of_mathematics_is_judged_by_its_answers(tmp_path: Path) -> None:
    task = MathTask(train=write(tmp_path / "gsm8k.jsonl", GSM8K), answer_after="####")
    rows = [row for _, row in task.prompts("train", read)]
    assert [row["answer"] for row in rows] == ["42", "1/2", "1,001"]
    assert rows[0]["messages"][0]["content"].startswith("What is 6 times 7?\n\nReason")
    assert list(task.prompts("held_out", read)) == []
    right = {
        0: ("It is \\boxed{42}.", "so \\boxed{42.0}", "The answer is 42."),
        1: ("\\boxed{\\frac{1}{2}}", "\\boxed{0.5}", "$\\frac{2}{4}$"),
        2: ("\\boxed{1001}", "the final answer is 1,001"),
    }
    wrong = ("", "\\boxed{43}", "I do not know", "\\boxed{", "\\boxed{\0}", "\\boxed{x}")
    for number, texts in right.items():
        assert [task.verify(rows[number], text).score for text in texts] == [1.0] * len(texts)
    for row in rows:
        assert [task.verify(row, text).score for text in wrong] == [0.0] * len(wrong)


def test_an_answer_may_be_a_list_of_answers(tmp_path: Path) -> None:
    """As those of OlympiadBench are, nearly always of one."""
    rows = [{"question": "q", "final_answer": ["2"]}, {"question": "r", "final_answer": ["1", "3"]}]
    task = MathTask(train=write(tmp_path / "rows.jsonl", rows), answer="final_answer")
    one, two = (row for _, row in task.prompts("train", read))
    assert (one["answer"], two["answer"]) == ("2", "1, 3")
    assert [task.verify(one, text).score for text in ("\\boxed{2}", "\\boxed{3}")] == [1.0, 0.0]
    assert [task.verify(two, t).score for t in ("\\boxed{1, 3}", "\\boxed{1}")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("\\$5", "\\boxed{5}"),
        ("\\$18,000", "\\boxed{18000}"),
        ("\\$2.50", "\\boxed{\\$2.50}"),
        ("$\\$36$", "\\boxed{36}"),
        ("1,000 dollars", "\\boxed{1000}"),
        ("18 square feet", "\\boxed{18}"),
        ("1,000", "\\boxed{1,000}"),
        ("(1,2)", "\\boxed{(1,2)}"),
        ("\\frac{1}{2}", "\\boxed{0.5}"),
    ],
)
def test_an_amount_is_read_as_one(answer: str, right: str) -> None:
    task = MathTask(train="rows.jsonl")
    assert task.verify({"answer": answer}, right).score == 1
    assert task.verify({"answer": answer}, "\\boxed{7}").score == 0


def test_an_answer_of_the_data_that_cannot_be_read_is_told_and_no_zero(tmp_path: Path) -> None:
    task = MathTask(train=write(tmp_path / "rows.jsonl", [{"question": "?", "answer": " "}]))
    (_, row) = next(iter(task.prompts("train", read)))
    verdict = task.verify(row, "\\boxed{1}")
    assert verdict.score is None
    assert "cannot read the right answer" in verdict.reason


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "?"}, "no 'answer'; its columns are question"),
        ({"answer": "1"}, "no 'question'"),
        ({"question": 3, "answer": "#### 1"}, "holds a int"),
        ({"question": "?", "answer": "1"}, "has no '####'"),
    ],
)
def test_a_row_that_lacks_something_is_named(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    task = MathTask(train=write(tmp_path / "rows.jsonl", [row]), answer_after="####")
    with pytest.raises(ConfigurationError, match=re.escape(said)) as caught:
        list(task.prompts("train", read))
    assert caught.value.where.endswith("rows.jsonl, line 1")


def test_an_answer_that_never_ends_is_cut_off_and_counted(tmp_path: Path) -> None:
    task = MathTask(train=write(tmp_path / "rows.jsonl", GSM8K))
    verifiers = Verifiers({"math": task}, VerificationSettings(seconds=2.0))
    try:
        texts = ("9**9**9**9**9 + 1", "\\boxed{42}", "\\boxed{" * 20_000)
        begun = [verifiers.submit(of_task("math", {"answer": "42"}), text) for text in texts]
        judged = [one for one in waited(begun, lambda: False) if one is not None]
        assert judged[0].failure in ("time", "memory")
        assert judged[1].score == 1
        assert not judged[2].right
    finally:
        verifiers.close()


FAMILIES: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "max_digits": 2},
    "spell_backward": {"max_word_len": 5},
    "gcd": {},
    "letter_counting": {},
    "number_sorting": {"max_numbers": 4},
    "propositional_logic": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_own_answer_is_right_and_another_is_not(family: str) -> None:
    task = ReasoningTask(
        family=family, parameters=FAMILIES[family], prompts_to_train=5, prompts_held_out=3
    )
    train, held_out = (list(task.prompts(split, read)) for split in ("train", "held_out"))
    assert (len(train), len(held_out)) == (5, 3)
    again = task.model_copy(update={"prompts_to_train": 9})
    assert list(again.prompts("held_out", read)) == held_out, "whatever is trained on"
    other = list(task.model_copy(update={"seed": 1}).prompts("train", read))
    assert [row["question"] for _, row in other] != [row["question"] for _, row in train]
    for _, row in (*train, *held_out):
        answer = task._questions()[row["index"]]["answer"]
        # Of this family the generator gives no answer, but an example of one.
        answer = answer or task._questions()[row["index"]]["metadata"]["example_answer"]
        assert task.verify(row, f"Well, <answer>{answer}</answer>").score == 1
        assert not task.verify(row, "<answer>nothing like it</answer>").right
        assert not task.verify(row, f"no tags, {answer}").right
        assert not task.verify({**row, "question": "another"}, answer).right


@pytest.mark.parametrize(
    ("extract", "response", "answer"),
    [
        ("tag", "<answer>1</answer> or <answer> 2 </answer>", "2"),
        ("tag", "<answer>1", None),
        ("tag", "1</answer>", None),
        ("tag", "", None),
        ("tag", "<answer></answer>", ""),
        ("last_line", "so\n 3 \n", "3"),
        ("last_line", "", None),
        ("whole", " a\nb ", "a\nb"),
        ("whole", "", ""),
    ],
)
def test_what_of_a_response_is_the_answer(extract: Any, response: str, answer: str | None) -> None:
    assert ReasoningTask(family="gcd", extract=extract).answer_of(response) == answer


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"family": "chain_sums"}, "did you mean chain_sum?"),
        ({"family": "countdown"}, "is refused: its verifier gives the answer to sympy"),
        ({"family": "n_queens"}, "is refused: its verifier runs the answer as Python"),
        ({"family": "ransom_note"}, "is refused: its questions depend on Python's hash seed"),
        ({"family": "list_functions"}, "is refused: it draws from Python's global random numbers"),
        ({"family": "codeio"}, "is refused: it runs programs to find the right answers"),
        ({"family": "knight_swap"}, "is refused: one of its questions can take longer to make"),
        ({"family": "chain_sum", "parameters": {"min_term": 2}}, "min_term"),
        ({"family": "chain_sum", "parameters": {"min_terms": 9}}, "max_terms must be"),
    ],
)
def test_families_and_parameters_that_cannot_be_are_refused(
    values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        ReasoningTask(**values).prepare()


@pytest.mark.parametrize(
    ("name", "said"),
    [("seed", "set seed of the task"), ("size", "set prompts_to_train and prompts_held_out of")],
)
def test_what_the_task_sets_is_no_parameter(name: str, said: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} is set by the task.*{said}"):
        ReasoningTask(family="chain_sum", parameters={name: 5})


# Prints the questions of every family that is not refused, and what its judge reads.
MADE = """
import json, warnings
warnings.simplefilter("ignore")
from reasoning_gym.factory import DATASETS
from student_trainer.tasks.reasoning import REFUSED, ReasoningTask

found = {}
for family in sorted(set(DATASETS) - set(REFUSED)):
    questions = ReasoningTask(family=family)._questions()
    made = [questions[index] for index in range(2)]
    found[family] = [repr((one["question"], one["metadata"])) for one in made]
print("\\n" + json.dumps(found))  # one family prints dots
"""


def test_every_family_makes_the_same_questions_in_every_process() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MADE],
            env={**child_environment(), "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
        )
        for seed in ("1", "2")
    ]
    first, second = (json.loads(process.communicate()[0].splitlines()[-1]) for process in processes)
    assert len(first) > 80
    assert [family for family in first if first[family] != second[family]] == []


# Modules that run text of their own making: the question's, or the right answer's.
OF_ITS_OWN = {"basic_arithmetic", "bitwise_arithmetic", "codeio", "number_sorting"}
RUNS = re.compile(r"(?<!def )\b(eval|exec|parse_expr|sympify|parse_latex)\(")


def test_no_other_family_runs_what_a_student_writes() -> None:
    from reasoning_gym.factory import DATASETS

    modules = {name: inspect.getmodule(kind) for name, (kind, _) in DATASETS.items()}
    running = {
        name
        for name, module in modules.items()
        if module and RUNS.search(inspect.getsource(module))
    }
    # This one has a parser of its own, which is called like sympy's.
    assert running - {"propositional_logic"} == (set(RUNS_TEXT) - {"composite"}) | OF_ITS_OWN


def test_a_conversation_or_a_text_is_a_prompt_without_a_verifier(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "hello"}], "other": 1},
        {"prompt": "a text"},
    ]
    task = ChatTask(train=write(tmp_path / "rows.jsonl", rows))
    assert not task.verifies
    assert [row for _, row in task.prompts("train", read)] == [
        {"messages": [{"role": "user", "content": "hello"}]},
        {"prompt": "a text"},
    ]
    asked = ChatTask(train=write(tmp_path / "asked.jsonl", [{"q": "why?"}]), user="q")
    assert [row for _, row in asked.prompts("train", read)] == [
        {"messages": [{"role": "user", "content": "why?"}]}
    ]


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra"):
        TASKS["chat"].model_validate({"train": "a.jsonl", "answer": "b"})
    assert issubclass(TASKS["math"], Task)


class Strict(MathTask):
    """Has the kind of the class that it extends."""

    def verify(self, row: Row, response: str) -> Verdict:
        return Verdict(0.0)


class CalledByItsName(Strict):
    kind: str = ""  # type: ignore[assignment]


class Holder(Settings):
    tasks: TaskConfigs


def test_a_class_that_extends_a_kind_is_not_taken_for_it(tmp_path: Path) -> None:
    where = {"train": write(tmp_path / "rows.jsonl", GSM8K)}
    said = r"Strict already has the kind 'math'.*write `kind: str = \"\"`"
    for one in (Strict(**where), {"kind": f"{__name__}:Strict", **where}):
        with pytest.raises(ValidationError, match=said):
            Holder.model_validate({"tasks": {"strict": one}})
    kind = f"{__name__}:CalledByItsName"
    for task in (CalledByItsName(**where), {"kind": kind, **where}):
        found = Holder.model_validate({"tasks": {"strict": task}}).tasks["strict"]
        assert (type(found), found.kind) == (CalledByItsName, kind)
