"""Datasets as people have them: every shape that docs/data.md lists, through load_prompts."""

from __future__ import annotations

import copy
import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ABSENT, ChatMessage, ChatPrompt, TextPrompt
from transformers import PreTrainedTokenizerFast

from student_trainer.data import PromptOrder, PromptSets, load_prompts
from student_trainer.data.encoding import Encoder
from student_trainer.settings.data import DataSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.student.tokenizer import load_tokenizer
from tests.realign.real_tokenizers import tokenizer_file

USER = {"role": "user", "content": "hello there"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "rain"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
# Prints what tells the shapes apart.
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}"
    "{% if m['content'] is none %} null{% elif m['content'] is not defined %} absent"
    "{% else %}:{{ m['content'] }}{% endif %}"
    "{% for call in m['tool_calls'] or [] %} {{ call['function']['name'] }}"
    "({{ call['function']['arguments'] | tojson }}){% endfor %}]{% endfor %}"
    "{% for tool in tools or [] %}<{{ tool['function']['name'] }}>{% endfor %}"
    "{% if tools is defined and tools is not none %} with tools{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(student_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    template = tmp_path_factory.mktemp("template") / "template.jinja"
    template.write_text(TEMPLATE)
    return load_tokenizer(StudentSettings(model=str(student_model_dir), chat_template=template))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(tokenizer: Any, train: Any, **settings: Any) -> PromptSets:
    return load_prompts(DataSettings(train=train, **settings), tokenizer)


def texts(tokenizer: Any, train: Any, **settings: Any) -> list[str]:
    return [tokenizer.decode(p.token_ids) for p in load(tokenizer, train, **settings).train]


HELLO = "[user:hello there]"
ANSWERED = [USER, {"role": "assistant", "content": "hi"}]
CONVERSATIONS: list[tuple[str, dict[str, Any], str]] = [
    ("messages", {"messages": [USER]}, HELLO),
    ("prompt", {"prompt": [USER]}, HELLO),
    ("JSON text", {"messages": json.dumps([USER])}, HELLO),
    ("columns", {"messages": {"role": ["user"], "content": ["hello there"]}}, HELLO),
    ("other column is null", {"messages": None, "prompt": [USER]}, HELLO),
    (
        "ShareGPT",
        {
            "conversations": [
                {"from": "system", "value": "be kind"},
                {"from": "human", "value": "hello there"},
                {"from": "gpt", "value": "hi"},
                {"from": "human", "value": "bye"},
            ]
        },
        "[system:be kind][user:hello there][assistant:hi][user:bye]",
    ),
    (
        "ShareGPT with tools",
        {
            "conversations": [
                {"from": "human", "value": "hello there"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
                {"from": "observation", "value": "2"},
            ]
        },
        '[user:hello there][assistant null f({"a": 1})][tool:2]',
    ),
    (
        "content null",
        {"messages": [USER, CALLED, RESULT]},
        '[user:hello there][assistant null weather({"city": "Ulm"})][tool:rain]',
    ),
    (
        "content missing",
        {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT]},
        '[user:hello there][assistant absent weather({"city": "Ulm"})][tool:rain]',
    ),
    (
        "calls as JSON text",
        {"messages": [USER, {**CALLED, "tool_calls": json.dumps([CALL])}, RESULT]},
        '[user:hello there][assistant null weather({"city": "Ulm"})][tool:rain]',
    ),
    (
        "parts",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "hello "},
                        {"type": "text", "text": "there"},
                    ],
                }
            ]
        },
        HELLO,
    ),
    (
        "fields of OpenAI's library",
        {"messages": [{**ANSWERED[1], "tool_calls": None, "refusal": None, "audio": None}, USER]},
        "[assistant:hi]" + HELLO,
    ),
    (
        "no calls",
        {"messages": [{**ANSWERED[1], "tool_calls": []}, USER]},
        "[assistant:hi]" + HELLO,
    ),
    ("developer", {"messages": [{"role": "developer", "content": "x"}, USER]}, "[developer:x]"),
    ("function", {"messages": [USER, {"role": "function", "name": "f", "content": "1"}]}, HELLO),
    ("ipython", {"messages": [USER, {"role": "ipython", "content": "1"}]}, HELLO + "[ipython:1]"),
]


@pytest.mark.parametrize(
    ("row", "text"), [c[1:] for c in CONVERSATIONS], ids=[c[0] for c in CONVERSATIONS]
)
def test_a_conversation_in_any_shape_is_one(
    tokenizer: Any, tmp_path: Path, row: dict[str, Any], text: str
) -> None:
    (found,) = texts(tokenizer, write(tmp_path / "a.jsonl", [row]))
    assert found.startswith(text)


NO_TOOLS: list[Any] = [None, "null", "", " ", [], "[]", ABSENT]
SOME_TOOLS: list[Any] = [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]]


@pytest.mark.parametrize("tools", [*NO_TOOLS, *SOME_TOOLS], ids=str)
def test_tools_in_any_form(tokenizer: Any, tmp_path: Path, tools: Any) -> None:
    own = {} if tools is ABSENT else {"tools": tools}
    rows = [{"prompt": [USER], **own}, {"prompt": [USER], "tools": [TOOL]}]
    path = write(tmp_path / "a.jsonl", rows)
    sets = load(tokenizer, path, columns={"tools": "tools"})
    first, _ = (tokenizer.decode(p.token_ids) for p in sets.train)
    assert first == HELLO + ("<weather> with tools" if tools in SOME_TOOLS else "")
    source = sets.train[0].source
    assert isinstance(source, ChatPrompt)
    assert source.template_arguments == ({"tools": [TOOL]} if tools in SOME_TOOLS else {})


@pytest.mark.parametrize("arguments", [None, "null", "", {}, "{}", ABSENT], ids=str)
def test_no_arguments_of_a_row_s_own(tokenizer: Any, tmp_path: Path, arguments: Any) -> None:
    own = {} if arguments is ABSENT else {"kwargs": arguments}
    rows = [{"prompt": [USER], **own}, {"prompt": [USER], "kwargs": {"tools": [TOOL]}}]
    path = write(tmp_path / "a.jsonl", rows)
    found = texts(tokenizer, path, columns={"template_arguments": "kwargs"})
    assert found == [HELLO, HELLO + "<weather> with tools"]


def test_a_text_is_the_user_s_turn(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        {"question": "1 + 1?", "answer": "2"},
        {"question": "2 + 2?", "answer": "4", "system_prompt": "be brief"},
        {"question": "3 + 3?", "answer": "6", "system_prompt": None},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    asked = {"columns": {"user": "question"}}
    assert texts(tokenizer, path, **asked) == ["[user:1 + 1?]", "[user:2 + 2?]", "[user:3 + 3?]"]
    found = texts(tokenizer, path, **asked, system="think")
    assert found[0] == "[system:think][user:1 + 1?]"
    columns = {"user": "question", "system": "system_prompt"}
    found = texts(tokenizer, path, columns=columns, system="think")
    assert found == [
        "[system:think][user:1 + 1?]", "[system:be brief][user:2 + 2?]",
        "[system:think][user:3 + 3?]",
    ]  # fmt: skip


def test_a_system_prompt_is_that_of_the_conversation_first(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        {"messages": [USER]},
        {"messages": [{"role": "system", "content": "own"}, USER]},
        {"messages": [{"role": "developer", "content": "own"}, USER]},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    assert texts(tokenizer, path, system="all") == [
        "[system:all]" + HELLO, "[system:own]" + HELLO, "[developer:own]" + HELLO,
    ]  # fmt: skip
    text = write(tmp_path / "b.jsonl", [{"prompt": "as it is"}])
    with pytest.raises(ConfigurationError, match=r"line 1: .*system prompt is set") as caught:
        load(tokenizer, text, system="all")
    assert 'data.columns.user = "prompt"' in caught.value.fix
    assert texts(tokenizer, text, columns={"user": "prompt"}) == ["[user:as it is]"]


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "this list is empty", ""),
    ({"messages": [USER, 3]}, r"messages\[1\] is a number \(3\)", ""),
    ({"messages": [{"content": "x"}]}, r"messages\[0\] has no role", ""),
    ({"messages": [{"role": None, "content": "x"}]}, "has null as its role", ""),
    ({"messages": [{"role": "user", "content": 3}]}, r"has a number \(3\) as its content", "text"),
    ({"messages": [{"role": "user", "content": True}]}, "a boolean", "text"),
    ({"messages": [{"role": "user", "content": None}]}, "null as its content", "empty"),
    ({"messages": [{"role": "tool"}, USER]}, r"messages\[0\] has no content", "assistant's turn"),
    ({"messages": [{"role": "assistant"}, USER]}, r"messages\[0\] has no content", ""),
    ({"messages": [{"role": "tool", "content": {"a": 1}}]}, "an object as its content", "text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "a part of type 'image_url' in its content",
        "leave the row out",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "type 'text'", "texts"),
    ({"messages": "[{"}, "the text is not JSON", ""),
    ({"messages": [{**CALLED, "tool_calls": "{"}, USER]}, "not JSON: Expecting", ""),
    ({"messages": [{**CALLED, "tool_calls": [1]}, USER]}, "no list of objects", "tool_calls"),
    ({"conversations": [{"from": "alien", "value": "x"}]}, "is from 'alien'", "role and content"),
    ({"conversations": [{"from": "human"}]}, "has null as its content", ""),
    ({"prompt": None}, "'prompt' is null", "leave the row out"),
    ({"messages": [USER], "conversations": [USER]}, "both messages and conv", "columns.prompt"),
    ({"messages": [{**USER, "x": float("nan")}]}, "not JSON compliant|not a finite", ""),
    ({"messages": [{**USER, "x": "\ud800"}]}, "surrogates not allowed", ""),
]


@pytest.mark.parametrize(("row", "what", "fix"), BAD, ids=[str(b[0])[:50] for b in BAD])
def test_a_row_of_another_shape_is_refused_with_its_place(
    tokenizer: Any, tmp_path: Path, row: Any, what: str, fix: str
) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "good"}, row])
    with pytest.raises(ConfigurationError, match=what) as caught:
        load(tokenizer, path)
    assert caught.value.where.startswith(f"{path}, line 2")
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("line", "what", "fix"),
    [
        ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' twice", "keep one"),
        ('{"prompt": "a", "x": {"y": 1, "y": 1}}', "the key 'y' twice", "keep one"),
        ('{"prompt": "a", "x": ' + "[" * 200_000 + "}", "nested too deeply", "leave the row out"),
        ('{"prompt": "a", "x": ' + "1" * 5000 + "}", "too many digits", "as a text"),
        ('{"prompt": "a"', "not JSON", ""),
    ],
    ids=range(5),
)
def test_json_that_cannot_be_read_is_refused_with_its_place(
    tokenizer: Any, tmp_path: Path, line: str, what: str, fix: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "good"}\n' + line + "\n")
    with pytest.raises(ConfigurationError, match=what) as caught:
        load(tokenizer, path)
    assert caught.value.where == f"{path}, line 2"
    assert fix in caught.value.fix


def test_what_is_deeper_than_a_request_carries_is_refused_when_it_is_read(
    tokenizer: Any, tmp_path: Path
) -> None:
    deep: Any = "x"
    for _ in range(30):
        deep = [deep]
    path = write(tmp_path / "a.jsonl", [{"messages": [{**USER, "x": deep}]}])
    with pytest.raises(ConfigurationError, match="deeper than 24 levels") as caught:
        load(tokenizer, path)
    assert caught.value.where.startswith(f"{path}, line 1: messages[0].x[0]")


def test_a_number_that_is_none_in_a_column_that_nobody_uses_does_not_matter(
    tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "good", "score": NaN, "more": Infinity}\n')
    assert texts(tokenizer, path) == ["good"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("begin", ["", "\ufeff"])
def test_marks_of_other_systems_in_a_file(
    tokenizer: Any, tmp_path: Path, begin: str, end: str
) -> None:
    lines = ['{"prompt": "a"}', "  ", ' {"prompt": "b"} ', ""]
    path = tmp_path / "a.jsonl"
    path.write_bytes((begin + end.join(lines)).encode())
    assert texts(tokenizer, path) == ["a", "b"]


def test_json_lists_and_compressed_files(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    whole = json.dumps(rows, indent=1).encode()
    for name, content in (
        ("list.json", whole),
        ("bom.json", b"\xef\xbb\xbf" + whole),
        ("lines.json", lines),
        ("lines.jsonl.gz", gzip.compress(lines)),
        ("LIST.JSON.GZ", gzip.compress(whole)),
    ):
        (tmp_path / name).write_bytes(content)
        assert texts(tokenizer, tmp_path / name) == ["a", "b"], name
    (tmp_path / "bad.json").write_text('[{"prompt": "a"}, 3]')
    with pytest.raises(ConfigurationError, match=r"bad\.json, item 2: a row is a JSON object"):
        load(tokenizer, tmp_path / "bad.json")
    (tmp_path / "cut.json").write_text('[{"prompt": "a"},\n{"prompt"')
    with pytest.raises(ConfigurationError, match=r"cut\.json: not JSON: .*line 2"):
        load(tokenizer, tmp_path / "cut.json")
    for content in (b"no gzip", gzip.compress(lines)[:-9]):
        (tmp_path / "bad.jsonl.gz").write_bytes(content)
        with pytest.raises(ConfigurationError, match="cannot read"):
            load(tokenizer, tmp_path / "bad.jsonl.gz")


def test_arrow_s_nulls_are_not_the_template_s(tokenizer: Any, tmp_path: Path) -> None:
    import datasets
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"messages": [USER, CALLED, {**RESULT, "name": "weather"}], "tools": [TOOL], "id": 1},
        {"messages": [USER], "tools": None, "id": 2},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(
        str(tmp_path / "splits")
    )
    columns = {"tools": "tools"}
    lines = load(tokenizer, write(tmp_path / "a.jsonl", rows), columns=columns).train
    for name in ("a.parquet", "saved", "splits"):
        found = load(tokenizer, tmp_path / name, columns=columns).train
        assert [p.prompt_id for p in found] == [p.prompt_id for p in lines], name
        source = found[0].source
        assert isinstance(source, ChatPrompt)
        assert source.messages[0] == ChatMessage("user", "hello there")
        assert source.messages[1].content is None
    sets = load(
        tokenizer, write(tmp_path / "b.jsonl", rows[:1]), columns=columns,
        held_out=tmp_path / "splits", held_out_split="test",
    )  # fmt: skip
    assert len(sets.held_out) == 1
    with pytest.raises(ConfigurationError, match="its splits are train, test, not dev"):
        load(tokenizer, tmp_path / "splits", train_split="dev")


def test_home_folders_in_paths(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.jsonl", [{"prompt": "a"}])
    write(tmp_path / "b.jsonl", [{"prompt": "b"}])
    sets = load(tokenizer, "~/a.jsonl", held_out=["~/b.jsonl"])
    assert (len(sets.train), len(sets.held_out)) == (1, 1)
    assert texts(tokenizer, [{"file": "~/a.jsonl"}]) == ["a"]


def test_several_files(tokenizer: Any, tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", [{"prompt": f"a{n}"} for n in range(3)])
    two = write(tmp_path / "b.jsonl", [{"messages": [USER]}])
    sets = load(tokenizer, [one, str(two)])
    assert [p.file for p in sets.train] == [0, 0, 0, 1]
    order = PromptOrder.of(5, sets.train, sets.shares)
    assert sorted(order.take(0, 4)) == [0, 1, 2, 3], "each prompt once in an epoch"
    bad = write(tmp_path / "bad.jsonl", [{"prompt": 1}])
    with pytest.raises(ConfigurationError, match=r"bad\.jsonl, line 1"):
        load(tokenizer, [one, bad])
    with pytest.raises(ConfigurationError, match="holds no prompt") as caught:
        load(tokenizer, [one, write(tmp_path / "none.jsonl", [])])
    assert caught.value.where == "data.train[1]"


def test_files_with_weights_are_mixed_by_them(tokenizer: Any, tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", [{"prompt": f"a{n}"} for n in range(30)])
    two = write(tmp_path / "b.jsonl", [{"prompt": f"b{n}"} for n in range(4)])
    train = [{"file": one, "weight": 1}, {"file": two, "weight": 3}]
    sets = load(tokenizer, train)
    order = PromptOrder.of(5, sets.train, sets.shares)
    taken = order.take(0, 400)
    files = [sets.train[index].file for index in taken]
    assert Counter(files) == {0: 100, 1: 300}
    for count in (4, 40, 203):
        assert abs(Counter(files[:count])[1] - 0.75 * count) <= 1, "at every place"
    for number, size in ((0, 30), (1, 4)):
        own = [index for index in taken if sets.train[index].file == number]
        epochs = [own[start : start + size] for start in range(0, len(own) - size, size)]
        assert all(len(set(epoch)) == size for epoch in epochs), "epochs of its own"
        assert len({tuple(epoch) for epoch in epochs}) > 1
    assert order.take(100, 50) == taken[100:150], "a resumed run goes on in the same order"
    assert PromptOrder.of(6, sets.train, sets.shares).take(0, 400) != taken
    doubled = load(tokenizer, [{**one, "weight": 2 * one["weight"]} for one in train])  # type: ignore[dict-item]
    assert doubled.digest == sets.digest
    other = load(tokenizer, [train[0], {**train[1], "weight": 1}])
    assert other.digest != sets.digest, "a run with other weights is another run"
    assert load(tokenizer, [one, two]).digest not in (sets.digest, other.digest)


def test_files_with_weights_that_cannot_be_mixed(tokenizer: Any, tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", [{"prompt": f"a{n}"} for n in range(30)])
    two = write(tmp_path / "b.jsonl", [{"prompt": "b"}])
    with pytest.raises(ValueError, match="each one a weight, or none"):
        DataSettings(train=[{"file": str(one), "weight": 1}, str(two)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mean nothing in an evaluation"):
        DataSettings(train=str(one), held_out=[{"file": str(two), "weight": 1}])  # type: ignore[arg-type]
    weighted = [{"file": one, "weight": 1}, {"file": two, "weight": 1}]
    settings = DataSettings(train=weighted, held_out_fraction=0.5)  # type: ignore[arg-type]

    def until_the_only_prompt_is_held_out() -> None:
        for seed in range(200):
            load_prompts(settings, tokenizer, seed=seed)

    with pytest.raises(ConfigurationError, match="left to train on, and it has a weight") as caught:
        until_the_only_prompt_is_held_out()
    assert caught.value.where == "data.train[1]"


def test_columns_that_are_not_used_are_said_once(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"prompt": [USER], "tools": [TOOL], "id": n, "kwargs": {}} for n in range(3)]
    path = write(tmp_path / "a.jsonl", [*rows, {"prompt": [USER], "late": 1}])
    (note,) = [n for n in load(tokenizer, path).notes if "not used" in n]
    assert "'tools', 'id', 'kwargs', 'late'" in note
    assert "data.columns.tools names the one of the tools" in note
    assert "data.columns.template_arguments" in note
    sets = load(tokenizer, path, columns={"tools": "tools"})
    (note,) = [n for n in sets.notes if "not used" in n]
    assert "tools" not in note
    only = write(tmp_path / "b.jsonl", [{"prompt": "a"}])
    assert not [n for n in load(tokenizer, only).notes if "not used" in n]
    for name in ("tools", "template_arguments", "system"):
        with pytest.raises(ConfigurationError, match="no row has the column 'tool'") as caught:
            load(tokenizer, path, columns={name: "tool"})
        assert f"did you mean 'tools'? name the column in data.columns.{name}" in caught.value.fix


def test_what_no_text_and_no_second_system_prompt_can_use_is_said_once(
    tokenizer: Any, tmp_path: Path
) -> None:
    own = {"role": "system", "content": "own"}
    rows: list[Any] = [
        {"prompt": "a", "tools": [TOOL]},
        {"prompt": "b", "tools": None, "kwargs": {"n": 1}},
        {"prompt": "c", "tools": "[]"},
        {"prompt": [own, USER], "tools": [TOOL], "kwargs": {"m": 1}},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    names = {"tools": "tools", "template_arguments": "kwargs"}
    notes = load(tokenizer, path, columns=names).notes
    (note,) = [n for n in notes if "text prompts have template arguments or tools" in n]
    assert note.startswith("data.train: 2 text prompts")
    every = load(tokenizer, path, columns=names, template_arguments={"n": 2}).notes
    assert any(n.startswith("data.train: 3 text prompts") for n in every)
    given = ["mine", "own", None, "", "mine"]
    chats = [{"messages": [own, USER], "s": one} for one in given] + [
        {"messages": [USER], "s": "x"}
    ]
    path = write(tmp_path / "b.jsonl", chats)
    notes = load(tokenizer, path, columns={"system": "s"}).notes
    (note,) = [n for n in notes if "system prompt" in n]
    assert note.startswith("data.train: 2 conversations have a system prompt of their own")
    same = write(tmp_path / "c.jsonl", chats[1:2])
    assert load(tokenizer, same, columns={"system": "s"}).notes == ()


def test_text_prompts_stay_as_they_are(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": '[{"role": "user"}]'}, {"prompt": "  x \n"}])
    assert [p.source for p in load(tokenizer, path).train] == [
        TextPrompt('[{"role": "user"}]'), TextPrompt("  x \n"),
    ]  # fmt: skip


QWEN_LIKE = (
    "{% for m in messages %}{% if m['role'] in ['user', 'system', 'assistant', 'tool'] %}"
    "[{{ m['role'] }}:{{ m['content'] }}]{% endif %}{% endfor %}{{ tools | tojson }}"
)


def test_what_a_template_has_no_branch_for_is_said_once(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "developer", "content": "be brief"}, USER]},
        {"messages": [{"role": "developer", "content": "be long"}, USER]},
        {"messages": [USER, {**CALLED, "content": ""}, {**RESULT, "name": "weather"}]},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = QWEN_LIKE
    notes = [note for note in load(plain, path).notes if "prints nothing" in note]
    assert notes == [
        "the student's chat template prints nothing of these fields of messages: "
        "name (1 prompts), tool_calls (1 prompts)",
        "the student's chat template prints nothing of messages of these roles: "
        "developer (2 prompts)",
    ]
    assert [n for n in load(tokenizer, path).notes if "prints nothing" in n] == [
        "the student's chat template prints nothing of these fields of messages: name (1 prompts)"
    ]
    tools = write(tmp_path / "b.jsonl", [{"messages": [USER], "tools": [TOOL]}] * 3)
    plain.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (note,) = load(plain, tools, columns={"tools": "tools"}).notes
    assert "does not read tools" in note


def test_the_first_row_that_is_wrong_is_named_however_many_are_read_at_once(
    tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"prompt": "a"}, {"prompt": "long " * 60}, {"prompt": 3}]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(ConfigurationError, match="line 2: the prompt has"):
        load(tokenizer, path, max_prompt_tokens=20)
    with pytest.raises(ConfigurationError, match="line 3: a conversation"):
        load(tokenizer, path)
    with pytest.raises(ConfigurationError, match="line 1: the prompt is empty"):
        load(tokenizer, write(path, [{"prompt": ""}, {"prompt": 3}]))
    many = write(tmp_path / "b.jsonl", [{"prompt": f"prompt {n}"} for n in range(2500)])
    sets = load(tokenizer, many)
    assert [p.source for p in sets.train] == [TextPrompt(f"prompt {n}") for n in range(2500)]
    for prompt in sets.train[::97]:
        assert isinstance(prompt.source, TextPrompt)
        alone = tokenizer(prompt.source.text, add_special_tokens=False)["input_ids"]
        assert prompt.token_ids.tolist() == alone


TEXTS = [
    "hello", "", " two  spaces\n\n", "<|im_start|>user\nhi<|im_end|>",
    "\ufeff\u200bZürich 東京 \U0001f324",
    "def f(x):\n\treturn x ** 2", "1234567890 3.14", "</s><s>[INST]", "<think>", "a" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("name", ["qwen3", "llama2"])
def test_many_texts_at_once_are_encoded_as_each_alone(name: str) -> None:
    real = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file(name)))
    alone = [real(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    real.backend_tokenizer.enable_truncation(2)
    real.backend_tokenizer.enable_padding(length=5)
    encoder = Encoder(real)
    assert encoder.encode(TEXTS) == alone
    assert encoder.encode(TEXTS * 40) == alone * 40
    assert encoder.encode([]) == []


def test_a_tokenizer_that_does_more_than_its_file_is_asked_itself(tokenizer: Any) -> None:
    class Shouting:
        backend_tokenizer = tokenizer.backend_tokenizer

        def __call__(self, text: Any, **options: Any) -> Any:
            texts = [t.upper() for t in text] if isinstance(text, list) else text.upper()
            return tokenizer(texts, **options)

    expected = [tokenizer(t.upper(), add_special_tokens=False)["input_ids"] for t in TEXTS[:4]]
    assert Encoder(Shouting()).encode(TEXTS[:4]) == expected


def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path: Path) -> None:
    code = (
        "from student_trainer.data.files.rows import read_rows\n"
        "from student_trainer.data.files.source import Source\n"
        "try: list(read_rows(Source('owner/absent', 'data.train')))\n"
        "except Exception as error: print(error)\n"
    )
    # Nobody listens on this port, and it is no port that a listener could be given.
    changes = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | changes,
    )
    assert "cannot load the dataset 'owner/absent'" in done.stdout
    assert "Retry" not in done.stderr
