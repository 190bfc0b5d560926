"""What only the teacher reads of a row, over a real service; judged by the template and a plain
forward pass of the same model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    Continuation,
    Returns,
    Segment,
    TextPrompt,
    TokenPrompt,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from student_trainer.data import PromptSets, load_prompts
from student_trainer.rollout.base import PromptItem
from student_trainer.run.directory import read_metrics
from student_trainer.settings.student import StudentSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student, load_student
from student_trainer.teacher.link import TeacherLink
from student_trainer.train import train
from tests.trainer.processes import Server
from tests.trainer.test_run import in_directory, resumed_exactly

MakeConfig = Callable[..., TrainConfig]
RESPONSE = np.array([40, 41, 42, 43], np.int32)
TEMPLATE = "{prompt}\n\nA worked solution:\n{solution}"
TURN = {"role": "user", "content": "What is the capital?"}
SYSTEM = {"role": "system", "content": "The capital of France is Paris."}


@pytest.fixture
def config(make_config: MakeConfig, run_server: Server, tmp_path: Path) -> MakeConfig:
    """A configuration over these rows."""

    def make(*rows: dict[str, Any], model: Path | None = None, **sections: Any) -> TrainConfig:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"train": str(path), **sections.pop("data", {})}
        teacher = {"address": run_server.address, **sections.pop("teacher", {})}
        given = {} if model is None else {"model": model}
        return make_config(data=data, teacher=teacher, **given, **sections)

    return make


@pytest.fixture
def linked() -> Iterator[Callable[..., TeacherLink]]:
    links: list[TeacherLink] = []

    def make(config: TrainConfig, student: Student) -> TeacherLink:
        links.append(TeacherLink(config.named_teachers["default"], student, run="test"))
        return links[-1]

    yield make
    for link in links:
        link.close()


def prompts_of(config: TrainConfig, student: Student) -> PromptSets:
    return load_prompts(config.data, student.tokenizer)


COLUMN = {"columns": {"teacher_prompt": "hint"}}
# (row, data settings, what the teacher reads)
READ: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "text": ({"prompt": "user asks", "hint": "The teacher knows: user asks"}, COLUMN,
             "The teacher knows: user asks"),
    "text by a template": ({"prompt": "user asks", "solution": 4},
                           {"teacher_prompt_template": TEMPLATE},
                           "user asks\n\nA worked solution:\n4"),
    "conversation": ({"prompt": [TURN], "hint": [SYSTEM, TURN]}, COLUMN, [SYSTEM, TURN]),
    "text for the last turn": (
        {"prompt": [SYSTEM, TURN], "hint": "It is Paris."}, COLUMN,
        [SYSTEM, {"role": "user", "content": "It is Paris."}]),
    "user's column by a template": (
        {"q": "The weather", "solution": "a{b}"},
        {"columns": {"user": "q"}, "teacher_prompt_template": "{{{q}}} {solution} {prompt}"},
        [{"role": "user", "content": "{The weather} a{b} The weather"}]),
    "none": ({"prompt": "user asks", "hint": None}, COLUMN, "user asks"),
}  # fmt: skip


@pytest.mark.parametrize("prompt", ["own", "student"])
@pytest.mark.parametrize("case", READ)
def test_the_teacher_scores_after_what_only_it_reads(
    config: MakeConfig,
    linked: Callable[..., TeacherLink],
    student: Student,
    tiny_model_dir: Path,
    case: str,
    prompt: str,
) -> None:
    row, data, read = READ[case]
    rows = [row, {**row, "hint": "something"}] if case == "none" else [row]
    settings = config(*rows, data=data, teacher={"prompt": prompt})
    item = prompts_of(settings, student).train[0]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    if not isinstance(read, str):
        read = tokenizer.apply_chat_template(read, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(read, add_special_tokens=False)["input_ids"]
    assert (item.for_teacher is None) == (case == "none")
    link = linked(settings, student)
    for asked in (item, item.as_read(next(link.reading.read([item.read_by_teacher])).item)):
        check_scores(link, asked, ids, tiny_model_dir)
    if case != "none":
        assert item.token_ids.tolist() != ids, "the student reads something else"


def check_scores(link: TeacherLink, item: PromptItem, prompt: list[int], model: Path) -> None:
    """The service scores a response as a plain forward pass does after these ids."""
    rows = np.arange(len(RESPONSE), dtype=np.int32)
    scored = link.score_rows(item, RESPONSE, rows, 8, 1.0)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = network(torch.tensor([[*prompt, *RESPONSE.tolist()]])).logits
    plain = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert scored.rows.support is not None
    np.testing.assert_allclose(scored.rows.support.log_probs, plain.topk(8, -1).values, atol=1e-4)


@pytest.fixture(scope="module")
def foreign(foreign_student_dir: Path) -> Student:
    return load_student(StudentSettings(model=str(foreign_student_dir), device="cpu"))


def test_a_teacher_across_tokenizers_reads_it_as_its_prompt(
    config: MakeConfig, linked: Callable[..., TeacherLink], foreign: Student
) -> None:
    row = {"prompt": [TURN], "solution": "Paris"}
    settings = config(row, data={"teacher_prompt_template": TEMPLATE})
    link = linked(settings, foreign)
    assert link.realigned
    (item,) = prompts_of(settings, foreign).train
    text = f"{TURN['content']}\n\nA worked solution:\nParis"
    read = ChatPrompt((ChatMessage("user", text),), now=item.source.now)  # type: ignore[union-attr]
    request = link.request(item, (Continuation((Segment(RESPONSE),)),), 8, 1.0, Returns())
    assert request.teacher_prompt == read
    assert isinstance(request.prompt, TokenPrompt)
    assert request.prompt.token_ids.tolist() == item.token_ids.tolist()
    rows = np.arange(len(RESPONSE), dtype=np.int32)
    given, without = (
        link.score_rows(one, RESPONSE, rows, 8, 1.0).rows.arrays()
        for one in (item, replace(item, for_teacher=None))
    )
    alone = replace(item, source=read, for_teacher=None)
    expected = link.score_rows(alone, RESPONSE, rows, 8, 1.0).rows.arrays()
    assert all(given[name].tobytes() == expected[name].tobytes() for name in expected)
    assert any(given[name].tobytes() != without[name].tobytes() for name in expected)


def test_requests_differ_by_what_only_the_teacher_reads(
    config: MakeConfig, linked: Callable[..., TeacherLink], student: Student
) -> None:
    rows = [{"prompt": "user asks", "hint": hint} for hint in (None, "one", "other")]
    settings = config(*rows, data=COLUMN)
    link = linked(settings, student)
    continuation = (Continuation((Segment(RESPONSE),)),)
    every = [
        link.request(item, continuation, 8, 1.0, Returns())
        for item in prompts_of(settings, student).train
    ]
    texts = replace(every[0], teacher_prompt=TextPrompt("one"))
    ids = {request.request_id for request in every}
    assert len(ids) == 3
    from student_trainer.teacher.requests import request_digest

    assert request_digest(texts) not in ids
    digests = {prompts_of(config(row, {"prompt": "x", "hint": "y"}, data=COLUMN), student).digest
               for row in rows}  # fmt: skip
    assert len(digests) == 3


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"prompt": "a b"}, {"teacher_prompt_template": TEMPLATE}, "has no column 'solution'"),
    ({"prompt": "a b", "solution": True}, {"teacher_prompt_template": TEMPLATE},
     "neither a text nor a number in its column 'solution'"),
    ({"prompt": "a b", "solution": float("nan")}, {"teacher_prompt_template": TEMPLATE},
     "neither a text nor a number in its column 'solution'"),
    ({"prompt": "a b", "hint": 3}, COLUMN, "a conversation is a list of objects"),
    ({"prompt": [SYSTEM], "hint": "x"}, COLUMN, "the conversation has none"),
    ({"prompt": "a b"}, COLUMN, "no row has the column 'hint'"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "data", "said"), REFUSED)
def test_rows_without_what_the_teacher_is_to_read_are_named(
    config: MakeConfig, student: Student, row: dict[str, Any], data: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        prompts_of(config(row, data=data), student)
    assert "line 1" in caught.value.where or caught.value.where == "data.train"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"teacher_prompt_template": "no column"}, "it names no column"),
        ({"teacher_prompt_template": "{}"}, "names no column"),
        ({"teacher_prompt_template": "{a!r}"}, "more in its braces"),
        ({"teacher_prompt_template": "{a:>5}"}, "more in its braces"),
        ({"teacher_prompt_template": "{a"}, "expected '}'"),
        ({"teacher_prompt_template": "{a}", **COLUMN}, "exclude each other"),
    ],
)
def test_templates_that_are_none_are_refused(
    config: MakeConfig, data: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        config({"prompt": "a"}, data=data)


LONG = "so warm " * 400
TOO_LONG: dict[str, dict[str, Any]] = {
    "one tokenizer": {},
    "the student's tokens": {"teacher": {"prompt": "student"}},
    "across tokenizers": {"teacher": {"name": "other"}},
}


@pytest.mark.parametrize("case", TOO_LONG)
def test_what_is_too_long_for_the_teacher_is_refused_before_the_first_step(
    config: MakeConfig, tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": [{"role": "user", "content": text}], "hint": hint}
            for text, hint in (("the sun", "a day"), ("it was", LONG), ("so", None))]  # fmt: skip
    settings = config(*rows, data=COLUMN, run={"steps": 1}, **TOO_LONG[case])
    with pytest.raises(ConfigurationError, match="reads as too long 1 of") as caught:
        train(settings)
    assert caught.value.where == f"{tmp_path / 'rows.jsonl'}, line 2"
    assert 'data.over_long = "drop"' in caught.value.fix
    dropped = config(*rows, data={**COLUMN, "over_long": "drop"}, run={"steps": 1},
                     **TOO_LONG[case])  # fmt: skip
    (line,) = read_metrics(train(dropped) / "metrics.jsonl")
    assert line["refused_rollouts"] == 0
    assert "which the teacher reads as too long" in caplog.text


def test_a_run_resumes_exactly_and_not_with_other_words_for_the_teacher(
    config: MakeConfig, tmp_path: Path
) -> None:
    rows = [{"prompt": text, "solution": f"{text} it is"}
            for text in ("the sun", "it was", "so", "user asks")]  # fmt: skip
    data = {"teacher_prompt_template": TEMPLATE}
    settings = config(*rows, data=data, checkpoint={"every": 1})
    straight = resumed_exactly(settings, tmp_path)
    losses = [line["loss"] for line in read_metrics(straight / "metrics.jsonl")]
    changed = [*rows[:3], {**rows[3], "solution": "another"}]
    other = config(*changed, data=data, checkpoint={"every": 1})
    with pytest.raises(ConfigurationError, match="what only the teacher reads of them, is not"):
        train(in_directory(other, tmp_path / "broken", steps=4))
    alike = config(*({"prompt": row["prompt"]} for row in rows), checkpoint={"every": 1})
    plain = train(in_directory(alike, tmp_path / "plain"))
    assert [line["loss"] for line in read_metrics(plain / "metrics.jsonl")] != losses
