"""Prompts: rows, splits, order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ChatPrompt, TextPrompt

from student_trainer.config import DataSettings
from student_trainer.data import PromptOrder, load_prompts
from student_trainer.model import Student

USER = [{"role": "user", "content": "hello there"}]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(student: Student, path: Path, **settings: Any) -> Any:
    return load_prompts(DataSettings(train=path, **settings), student)


def test_conversations_and_text(student: Student, tmp_path: Path) -> None:
    rows = [{"messages": USER}, {"prompt": USER}, {"prompt": "hello<|im_end|>", "answer": 3}]
    sets = read(student, write(tmp_path / "a.jsonl", rows))
    chat, same, text = sets.train
    rendered = student.tokenizer.decode(chat.token_ids)
    assert rendered == "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"
    assert isinstance(chat.source, ChatPrompt)
    assert chat.source.messages[0].content == "hello there"
    assert same.prompt_id == chat.prompt_id
    assert text.source == TextPrompt("hello<|im_end|>")
    assert text.token_ids[-1] == student.tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "a conversation is a list"),
        ({"messages": [{"role": "user"}]}, "a conversation is a list"),
        ({"text": "x"}, 'either "messages" or "prompt"'),
        ({"messages": USER, "prompt": "x"}, 'either "messages" or "prompt"'),
        ({"messages": "hello"}, "a conversation is a list"),
        ({"messages": [*USER, {"role": "assistant", "content": "hi"}]}, "assistant's turn"),
        ({"prompt": ""}, "the prompt is empty"),
        ([1], 'either "messages" or "prompt"'),
    ],
)
def test_a_bad_row_is_refused_with_its_line(
    student: Student, tmp_path: Path, row: Any, message: str
) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "good"}, row])
    with pytest.raises(ConfigurationError, match="line 2") as caught:
        read(student, path)
    assert message in str(caught.value)


def test_files_that_cannot_be_used(student: Student, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        read(student, tmp_path / "absent.jsonl")
    with pytest.raises(ConfigurationError, match="holds no prompt"):
        read(student, write(tmp_path / "empty.jsonl", []))
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt"\n')
    with pytest.raises(ConfigurationError, match=r"line 2: not JSON"):
        read(student, tmp_path / "broken.jsonl")


def test_a_long_prompt_is_refused_or_dropped_and_never_cut(
    student: Student, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "short"}, {"prompt": "long " * 30}])
    with pytest.raises(ConfigurationError, match=r"line 2: the prompt has \d+ tokens") as caught:
        read(student, path, max_prompt_tokens=20)
    assert "over_long" in str(caught.value)
    sets = read(student, path, max_prompt_tokens=20, over_long="drop")
    assert (len(sets.train), sets.dropped) == (1, 1)


def test_held_out_prompts_are_never_trained_on(student: Student, tmp_path: Path) -> None:
    rows = [{"prompt": f"prompt {n % 15}"} for n in range(20)]
    path = write(tmp_path / "a.jsonl", rows)
    sets = read(student, path, held_out_fraction=0.2)
    trained, held = ({p.prompt_id for p in part} for part in (sets.train, sets.held_out))
    assert not trained & held
    assert (len(trained), len(held)) == (12, 3)
    assert len(sets.train) + len(sets.held_out) == 20
    assert load_prompts(DataSettings(train=path, held_out_fraction=0.2), student, seed=1) != sets
    other = write(tmp_path / "b.jsonl", [{"prompt": "new"}, {"prompt": "prompt 3"}])
    with pytest.raises(ConfigurationError, match="1 prompts are also in the train file"):
        read(student, path, held_out=other)
    assert len(read(student, path, held_out=write(other, [{"prompt": "z"}])).held_out)
    with pytest.raises(ConfigurationError, match="is none"):
        read(student, path, held_out_fraction=0.01)


def test_every_epoch_takes_every_prompt_once_in_its_own_order() -> None:
    order = PromptOrder(seed=3, count=10)
    taken = [index for start in range(0, 40, 4) for index in order.take(start, 4)]
    epochs = [taken[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order.take(7, 6) == taken[7:13]
    assert PromptOrder(seed=4, count=10).take(0, 10) != epochs[0]
