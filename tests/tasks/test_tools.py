"""The task ``tools``: forms of calls, its tools, and its environment."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from teacher_proto.errors import ConfigurationError

from student_trainer.tasks.calling.calculator import CalculatorError, calculate
from student_trainer.tasks.calling.formats import FORMATS, Call, calls_in
from student_trainer.tasks.calling.tool import Tool
from student_trainer.tasks.environment import Environment, Turn
from student_trainer.tasks.tools import ToolsTask, same_answer

OPENS, ENDS, PARTS = (
    f"<\uff5ctool\u2581{what}\uff5c>" for what in ("call\u2581begin", "call\u2581end", "sep")
)
GIVEN = '{"expression": "6 * 7"}'
CALL = Call("calculator", {"expression": "6 * 7"})
WRITTEN = {
    "hermes": f'I see.\n<tool_call>\n{{"name": "calculator", "arguments": {GIVEN}}}\n</tool_call>',
    "tags": "<tool_call>\n<function=calculator>\n<parameter=expression>\n6 * 7\n</parameter>\n"
    "</function>\n</tool_call>",
    "mistral": f'[TOOL_CALLS] [{{"name": "calculator", "arguments": {GIVEN}}}]',
    "deepseek": f"{OPENS}function{PARTS}calculator\n```json\n{GIVEN}\n```{ENDS}",
    "llama": f'<|python_tag|>{{"name": "calculator", "parameters": {GIVEN}}}',
}
OTHERS = (
    ("mistral", f"[TOOL_CALLS]calculator[ARGS]{GIVEN}"),
    ("mistral", f"[TOOL_CALLS]calculator{GIVEN}"),
    ("deepseek", f"{OPENS}calculator{PARTS}{GIVEN}{ENDS}"),
    ("hermes", f'<think>\n<tool_call>no</think><tool_call>{{"name": "calculator", "arguments": '
     f"{json.dumps(GIVEN)}}}</tool_call>"),
    ("llama", f'{{"name": "calculator", "parameters": {GIVEN}}} please'),
    ("llama", f'I see. {{"type": "function", "name": "calculator", "parameters": {GIVEN}}}'),
)  # fmt: skip
BROKEN = (
    ("hermes", '<tool_call>{"name": "calculator"'),
    ("hermes", "<tool_call></tool_call>"),
    ("hermes", '<tool_call>["calculator"]</tool_call>'),
    ("hermes", '<tool_call>{"name": "calculator", "arguments": [1]}</tool_call>'),
    ("hermes", "<tool_call>" + "[" * 100_000),
    ("tags", "<tool_call>calculator</tool_call>"),
    ("mistral", "[TOOL_CALLS]"),
    ("mistral", "[TOOL_CALLS][]"),
    ("mistral", "[TOOL_CALLS]calculator"),
    ("deepseek", f"{OPENS}calculator{ENDS}"),
    ("deepseek", f"{OPENS}calculator{PARTS}{{{ENDS}"),
    ("llama", '{"name": "calculator", "parameters": '),
)


@pytest.mark.parametrize(("name", "text"), [*WRITTEN.items(), *OTHERS])
def test_a_call_is_read(name: str, text: str) -> None:
    assert calls_in(text, name) == [CALL]


def test_every_format_has_its_case() -> None:
    assert WRITTEN.keys() == FORMATS.keys()


@pytest.mark.parametrize(("name", "text"), BROKEN)
def test_a_call_that_cannot_be_read_says_why(name: str, text: str) -> None:
    (found,) = calls_in(text, name)
    assert found.problem


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "text", ["", "42", "the answer is \x00", "\ud7ff{}"[:1], '{"answer": 42}', "{no call}"]
)
def test_a_turn_without_a_call_has_none(name: str, text: str) -> None:
    assert calls_in(text, name) == []


def test_several_calls_are_read_in_order() -> None:
    found = calls_in(WRITTEN["hermes"] + WRITTEN["hermes"].replace("6", "8"), "hermes")
    assert [one.arguments["expression"] for one in found] == ["6 * 7", "8 * 7"]
    two = f"{WRITTEN['llama']}; {WRITTEN['llama'].replace('6', '8')}"
    found = calls_in(two, "llama")
    assert [one.arguments["expression"] for one in found] == ["6 * 7", "8 * 7"]
    assert [bool(one.problem) for one in calls_in(two + '; {"name": ', "llama")] == [0, 0, 1]


def test_the_calculator_is_exact() -> None:
    draw = random.Random(0)
    for _ in range(300):
        text, value = _expression(draw, 4)
        if value is None:
            with pytest.raises(CalculatorError):
                calculate(text)
            continue
        found = calculate(text)
        expected = str(value) if value.denominator == 1 else f"{float(value):.12g}"
        assert found == expected, text


def _expression(draw: random.Random, depth: int) -> tuple[str, Fraction | None]:
    """An expression and its value, made together; None where it divides by zero."""
    if not depth or draw.random() < 0.2:
        number = draw.randint(0, 999)
        return str(number), Fraction(number)
    left, a = _expression(draw, depth - 1)
    right, b = _expression(draw, depth - 1)
    sign = draw.choice("+-*/%")
    text = f"({left}) {sign} ({right})"
    if a is None or b is None or (sign in "/%" and b == 0):
        return text, None
    value = {"+": a + b, "-": a - b, "*": a * b}.get(sign)
    if value is None:
        value = a / b if sign == "/" else a - b * (a // b)
    return text, value


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", "14"), ("-2 ** 2", "-4"), ("2 ** 3 ** 2", "512"), ("2 ** -1", "0.5"),
        ("1,234.5 * 2", "2469"), ("7 // 2", "3"), ("-7 // 2", "-4"), ("2^10", "1024"),
        ("--3", "3"), (".5 + .25", "0.75"), ("10 - 3 - 2", "5"), ("8 / 4 / 2", "1"),
    ],
)  # fmt: skip
def test_the_calculator_has_the_usual_precedences(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "", " ", "2 +", "(2", "2)", "2 3", "1 / 0", "0 ** -1", "9 ** 9 ** 9", "2 ** 0.5",
        "(" * 400, "1" * 501, "9" * 499 + "*2", "__import__('os')", "2 ** 513", "2;3", "\x00", "²",
        "1" + "*9" * 249 + "**9", "-" * 499,
    ],
)  # fmt: skip
def test_what_is_no_expression_or_too_large_is_refused(expression: str) -> None:
    with pytest.raises(CalculatorError):
        calculate(expression)


def rows(task: ToolsTask, split: str) -> list[dict[str, Any]]:
    return [dict(row) for _, row in task.prompts(split, None)]  # type: ignore[arg-type]


def test_questions_are_made_again_and_need_the_price_list() -> None:
    task = ToolsTask(prompts_to_train=30, prompts_held_out=10, items=5, terms=3)
    first, held_out = rows(task, "train"), rows(task, "held_out")
    assert (len(first), len(held_out)) == (30, 10)
    assert first == rows(task, "train")
    assert {tool["function"]["name"] for tool in first[0]["tools"]} == {"calculator", "look_up"}
    assert ToolsTask(seed=1).callable()[1].schema == task.callable()[1].schema


def call(name: str, **arguments: Any) -> Turn:
    text = json.dumps({"name": name, "arguments": arguments})
    return Turn(f"<tool_call>{text}</tool_call>", f"<tool_call>{text}</tool_call>", "hermes")


def heard(environment: Environment, turn: Turn) -> list[str]:
    return [one["content"] for one in environment.act(turn).messages]


def test_a_question_is_answered_with_its_tools() -> None:
    task = ToolsTask(prompts_to_train=30, items=5, terms=3)
    for row in rows(task, "train"):
        environment = task.environment(row)
        words = row["messages"][0]["content"].partition("What do ")[2].partition(" cost ")[0]
        parts = []
        for term in words.split(" and "):
            count, _, thing = term.partition(" times ")
            (price,) = heard(environment, call("look_up", key=thing))
            parts.append(f"{count} * {price}")
        (total,) = heard(environment, call("calculator", expression=" + ".join(parts)))
        assert environment.act(Turn(f"so <answer>{total}</answer>", "", "hermes")).done
        verdict = environment.verdict()
        assert verdict.score == 1
        assert verdict.values == {"calls": len(parts) + 1, "failed_calls": 0}


class Odd(Tool):
    name = "odd"
    description = "Does what it should not."
    arguments = {"does": "what"}  # noqa: RUF012

    def call(self, **arguments: str) -> str:
        if arguments["does"] == "raise":
            raise KeyError("x" * 10_000)
        return "z" * (3 << 20)


class OddTask(ToolsTask):
    kind: str = ""  # type: ignore[assignment]

    def own_tools(self) -> list[Tool]:
        return [Odd()]


def test_failed_calls_are_told_and_counted() -> None:
    environment = OddTask().environment({"answer": "4"})
    turns = (
        call("odd", does="raise"), call("nothing"), call("calculator"),
        call("calculator", expression="1 / 0"), call("look_up", key="moon"),
        Turn("<tool_call>{", "<tool_call>{", "hermes"),
    )  # fmt: skip
    for turn in turns:
        (said,) = heard(environment, turn)
        assert said.startswith("error: ")
        assert len(said) < 400
    (long,) = heard(environment, call("odd", does="write"))
    assert len(long) == 3 << 20, "the process cuts it"
    many = Turn("", "<tool_call>{}</tool_call>" * 40, "hermes")
    assert len(heard(environment, many)) == 16
    assert environment.verdict().values == {"calls": 23, "failed_calls": 22}
    assert environment.verdict().score == 0


def test_what_a_student_thinks_is_no_answer_and_no_call() -> None:
    for text, score in (
        ("<answer>4</answer></think>It is 5.", 0), ("no</think><answer>4</answer>", 1),
        ("<think><answer>4</answer>", 0), ("<answer>4</answer><think>or not", 1),
    ):  # fmt: skip
        environment = ToolsTask().environment({"answer": "4"})
        assert environment.act(Turn(text, text, "hermes")).done
        assert environment.verdict().score == score
    assert calls_in("<think>" + WRITTEN["hermes"], "hermes") == []


def test_a_turn_that_begins_inside_of_thinking_says_what_follows_it() -> None:
    for text, score in (("<answer>4</answer>", 0), ("no</think><answer>4</answer>", 1)):
        environment = ToolsTask().environment({"answer": "4"})
        assert environment.act(Turn(text, text, "hermes", opened=True)).done
        assert environment.verdict().score == score
    assert calls_in(WRITTEN["hermes"], "hermes", opened=True) == []
    assert len(calls_in("so</think>" + WRITTEN["hermes"], "hermes", opened=True)) == 1


def test_no_error_says_again_what_could_be_a_marker_of_turns() -> None:
    marker = "<|im_end|>\n<|im_start|>user\n"
    environment = ToolsTask(items=3).environment({"answer": "4"})
    for turn in (
        call(marker), call("calculator", expression=marker), call("look_up", key=marker),
        call("calculator", **{marker: "1"}), Turn("", f"<tool_call>{marker}</tool_call>", "hermes"),
    ):  # fmt: skip
        (said,) = environment.act(turn).messages
        assert said["content"].startswith("error: ")
        assert not any("<|im" in text for text in said.values()), said


@pytest.mark.parametrize(
    ("said", "right", "same"),
    [
        ("12", "12.0", True), ("1,200", "1200", True), ("$5", "5", True), ("12", "13", False),
        ("Paris ", "paris", True), ("", "", False), ("", "3", False), ("nan", "nan", True),
        ("1e999999", "3", False), ("9" * 5000, "9", False),
    ],
)  # fmt: skip
def test_answers_are_compared(said: str, right: str, same: bool) -> None:
    assert same_answer(said, right) is same


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text('{"Paris": "France", "seven": 7}')
    task = ToolsTask(table=table, tools=("look_up",))
    environment = task.environment({"answer": "France"})
    assert heard(environment, call("look_up", key="seven")) == ["7"]
    for text in ("[1]", "{", '{"a": [1]}'):
        table.with_name(f"{len(text)}.json").write_text(text)
        with pytest.raises(ConfigurationError, match="table"):
            ToolsTask(table=table.with_name(f"{len(text)}.json")).prepare()
    with pytest.raises(ValidationError, match="needs table"):
        ToolsTask(train="questions.jsonl")
