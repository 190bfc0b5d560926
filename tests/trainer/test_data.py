"""Prompts: rows, splits, order."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ChatPrompt, TextPrompt

from student_trainer.data import PromptOrder, load_prompts
from student_trainer.settings.data import DataSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.student.model import Student, load_student

USER = [{"role": "user", "content": "hello there"}]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(student: Student, path: Path, **settings: Any) -> Any:
    return load_prompts(DataSettings(train=path, **settings), student.tokenizer)


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
        ([1], "a row is a JSON object"),
        ({"prompt": "half a pair \ud800"}, "surrogates not allowed"),
        ({"prompt": 3}, "a conversation is a list"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(
    student: Student, tmp_path: Path, row: Any, message: str
) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "good"}, row])
    with pytest.raises(ConfigurationError, match="line 2") as caught:
        read(student, path)
    assert message in str(caught.value)


def test_a_missing_column_names_those_there_and_the_nearest(
    student: Student, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [{"Prompts": "x", "answer": "y"}])
    with pytest.raises(ConfigurationError) as caught:
        read(student, path)
    assert "its columns are 'Prompts', 'answer'" in str(caught.value)
    assert "did you mean 'Prompts'? name the column in data.columns.prompt" in str(caught.value)
    (item,) = read(student, path, columns={"prompt": "Prompts"}).train
    assert item.source == TextPrompt("x")
    maths = write(tmp_path / "c.jsonl", [{"question": "1 + 1?", "answer": "2"}])
    with pytest.raises(ConfigurationError) as caught:
        read(student, maths)
    assert "name the column in data.columns.user if it holds the user's text" in caught.value.fix
    assert "data.columns.prompt if it holds a conversation" in caught.value.fix
    with pytest.raises(ConfigurationError, match=r"needs the column 'answers'.*mean 'answer'"):
        read(student, path, columns={"prompt": "answers"})
    both = write(tmp_path / "b.jsonl", [{"messages": USER, "prompt": "text"}])
    with pytest.raises(ConfigurationError, match=r"has both.*say which in data\.columns\.prompt"):
        read(student, both)
    (item,) = read(student, both, columns={"prompt": "prompt"}).train
    assert item.source == TextPrompt("text")


def test_files_that_cannot_be_used(student: Student, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        read(student, tmp_path / "absent.jsonl")
    with pytest.raises(ConfigurationError, match="holds no prompt"):
        read(student, write(tmp_path / "empty.jsonl", []))
    (tmp_path / "prompts.txt").write_text('{"prompt": "a"}')
    with pytest.raises(ConfigurationError, match=r"neither a \.jsonl nor a \.parquet file"):
        read(student, tmp_path / "prompts.txt")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "a"}\n{"prompt": "café"}'.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"line 2: not UTF-8: byte 0xe9 at offset 15"):
        read(student, tmp_path / "latin.jsonl")
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
    with pytest.raises(ConfigurationError, match="no prompt to use: all 2 are longer"):
        read(student, path, max_prompt_tokens=1, over_long="drop")


def test_a_line_separator_inside_a_text_ends_no_line(student: Student, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "one\u2028two"}\r\n\n{"prompt": "b"}\n', encoding="utf-8")
    assert [p.source for p in read(student, path).train] == [
        TextPrompt("one\u2028two"), TextPrompt("b"),
    ]  # fmt: skip


def test_an_assistants_last_turn_is_refused_or_left_out(student: Student, tmp_path: Path) -> None:
    answered = {"messages": [*USER, {"role": "assistant", "content": "hi"}]}
    path = write(tmp_path / "a.jsonl", [answered])
    with pytest.raises(ConfigurationError, match=r'data\.final_assistant = "drop"'):
        read(student, path)
    sets = read(student, path, final_assistant="drop")
    plain = read(student, write(tmp_path / "b.jsonl", [{"messages": USER}]))
    assert sets.train[0].token_ids.tolist() == plain.train[0].token_ids.tolist()
    alone = write(tmp_path / "c.jsonl", [{"messages": answered["messages"][1:]}])
    with pytest.raises(ConfigurationError, match="one assistant's turn"):
        read(student, alone, final_assistant="drop")


THINKING = (
    "{% for m in messages %}[{{ m['role'] }}{% if m['name'] is defined %}+name{% endif %}]"
    "{{ m['content'] }}{% endfor %}{% for tool in tools or [] %}<{{ tool['name'] }}>{% endfor %}"
    "{% if enable_thinking %}think{% else %}plain{% endif %}"
)


def rendered(student: Student, path: Path, **settings: Any) -> list[str]:
    return [student.tokenizer.decode(p.token_ids) for p in read(student, path, **settings).train]


def test_the_template_takes_arguments_of_the_settings_and_of_the_row(
    student_model_dir: Path, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(THINKING)
    student = load_student(
        StudentSettings(model=str(student_model_dir), device="cpu", chat_template=template)
    )
    tools = [{"name": "search"}]
    rows = [
        {"prompt": USER, "kwargs": {"enable_thinking": True}, "tools": json.dumps(tools)},
        {"prompt": USER, "kwargs": {}, "tools": tools},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    assert rendered(student, path) == ["[user]hello thereplain"] * 2
    thinking = {"template_arguments": {"enable_thinking": True}}
    assert rendered(student, path, **thinking) == ["[user]hello therethink"] * 2
    columns = {"template_arguments": "kwargs", "tools": "tools"}
    sets = read(student, path, columns=columns)
    assert [student.tokenizer.decode(p.token_ids) for p in sets.train] == [
        "[user]hello there<search>think", "[user]hello there<search>plain",
    ]  # fmt: skip
    assert sets.train[0].prompt_id != sets.train[1].prompt_id
    assert sets.train[0].source.template_arguments == {"enable_thinking": True, "tools": tools}
    assert read(student, path, **thinking).digest != read(student, path).digest
    bad = write(tmp_path / "b.jsonl", [{"prompt": USER, "kwargs": [1], "tools": "{"}])
    with pytest.raises(ConfigurationError, match="line 1: column 'kwargs' holds no object"):
        read(student, bad, columns={"template_arguments": "kwargs"})
    with pytest.raises(ConfigurationError, match="line 1: column 'tools' is not JSON"):
        read(student, bad, columns={"tools": "tools"})
    template.write_text("")
    with pytest.raises(ConfigurationError, match=r"student\.chat_template.*is empty"):
        load_student(StudentSettings(model=str(student_model_dir), chat_template=template))
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_student(
            StudentSettings(model=str(student_model_dir), chat_template=tmp_path / "absent")
        )


def test_parquet_and_hub_rows_are_those_of_jsonl(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import pyarrow
    from pyarrow import parquet

    named = [{"role": "user", "content": "hello", "name": "ann"}]
    rows = [{"messages": USER, "source": "a"}, {"messages": named, "source": "b"}]
    folder = tmp_path / "owner" / "prompts"
    folder.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    plain = read(student, write(tmp_path / "a.jsonl", rows)).train
    found = read(student, folder / "train.parquet").train
    assert [p.prompt_id for p in found] == [p.prompt_id for p in plain]
    assert [p.source for p in found] == [p.source for p in plain]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    loaded = load_prompts(DataSettings(train="owner/prompts"), student.tokenizer).train
    assert [p.prompt_id for p in loaded] == [p.prompt_id for p in plain]
    assert [p.source for p in loaded] == [p.source for p in plain]
    with pytest.raises(ConfigurationError, match="cannot load the dataset 'owner/prompts'"):
        load_prompts(DataSettings(train="owner/prompts", train_split="absent"), student.tokenizer)
    with pytest.raises(ConfigurationError, match=r"train\.parquet, row 1: .*'messages', 'source'"):
        read(student, folder / "train.parquet", columns={"prompt": "text"})
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 it is not")
    with pytest.raises(ConfigurationError, match=r"cannot read .*broken\.parquet"):
        read(student, tmp_path / "broken.parquet")


def test_a_hub_dataset_that_cannot_be_reached_is_refused(student: Student, tmp_path: Path) -> None:
    # HF_HUB_OFFLINE is set for every test.
    with pytest.raises(ConfigurationError, match="cannot load the dataset") as caught:
        read(student, "lsm-distill/absent")  # type: ignore[arg-type]
    assert "HF_HUB_OFFLINE" in str(caught.value)


def test_without_the_extra_only_jsonl_is_read(student: Student, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "a"}])
    code = (
        "import sys; sys.modules['datasets'] = sys.modules['pyarrow'] = None\n"
        "from student_trainer.data.files.rows import Source, read_rows\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(list(read_rows(Source(name, 'data.train'))))\n"
        "    except Exception as error: print(error)\n"
    )
    names = [str(path), str(tmp_path / "a.parquet"), "owner/name"]
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=True
    )
    first, second, third = done.stdout.splitlines()
    assert "line 1" in first
    for line, package in ((second, "pyarrow"), (third, "datasets")):
        assert f"needs the package {package}" in line
        assert "pip install '.[data]'" in line


def test_held_out_prompts_are_never_trained_on(student: Student, tmp_path: Path) -> None:
    rows = [{"prompt": f"prompt {n % 15}"} for n in range(20)]
    path = write(tmp_path / "a.jsonl", rows)
    sets = read(student, path, held_out_fraction=0.2)
    trained, held = ({p.prompt_id for p in part} for part in (sets.train, sets.held_out))
    assert not trained & held
    assert (len(trained), len(held)) == (12, 3)
    assert len(sets.train) + len(sets.held_out) == 20
    assert (
        load_prompts(DataSettings(train=path, held_out_fraction=0.2), student.tokenizer, seed=1)
        != sets
    )
    other = write(tmp_path / "b.jsonl", [{"prompt": "new"}, {"prompt": "prompt 3"}])
    with pytest.raises(ConfigurationError, match="1 prompts are also in the train file"):
        read(student, path, held_out=other)
    assert len(read(student, path, held_out=write(other, [{"prompt": "z"}])).held_out)
    with pytest.raises(ConfigurationError, match="is none"):
        read(student, path, held_out_fraction=0.01)


def asked(text: str, answer: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": "user", "content": text}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def test_a_prompt_is_what_the_student_reads_of_it(student: Student, tmp_path: Path) -> None:
    text = student.tokenizer.decode(
        read(student, write(tmp_path / "one.jsonl", [{"prompt": USER}])).train[0].token_ids
    )
    same = [
        {"messages": asked("hello there", "one answer"), "id": 1},
        {"messages": asked("hello there", "another"), "id": 2},
        {"messages": [{"content": "hello there", "role": "user", "name": "not rendered"}]},
        {"prompt": USER, "messages_of": "another column"},
        {"prompt": text},
    ]
    path = write(tmp_path / "a.jsonl", [*same, {"prompt": f"{text} "}])
    found = read(student, path, final_assistant="drop").train
    assert len({p.prompt_id for p in found[: len(same)]}) == 1
    assert found[-1].prompt_id != found[0].prompt_id, "white space is read"


def test_no_answer_makes_a_held_out_prompt_another(student: Student, tmp_path: Path) -> None:
    rows = [
        {"messages": asked(f"question {n % 12}", f"answer {n}"), "id": n, "source": {"at": n}}
        for n in range(36)
    ]
    path = write(tmp_path / "a.jsonl", rows)
    sets = read(student, path, final_assistant="drop", held_out_fraction=0.5)
    trained, held = (
        {student.tokenizer.decode(p.token_ids) for p in part}
        for part in (sets.train, sets.held_out)
    )
    assert (len(trained), len(held)) == (6, 6)
    assert not trained & held
    assert (len(sets.train), len(sets.held_out)) == (18, 18), "all three go to one side"
    # In files of their own, with other answers and as a text.
    question = read(student, write(tmp_path / "q.jsonl", [{"messages": asked("question 3")}]))
    text = student.tokenizer.decode(question.train[0].token_ids)
    for row in ({"messages": asked("question 3", "an answer of its own")}, {"prompt": text}):
        other = write(tmp_path / "b.jsonl", [row])
        with pytest.raises(ConfigurationError, match="1 prompts are also in the train file"):
            read(student, path, held_out=other, final_assistant="drop")


def test_the_digest_is_of_what_either_side_reads(student: Student, tmp_path: Path) -> None:
    def digest(*rows: Any) -> str:
        path = write(tmp_path / "digest.jsonl", list(rows))
        return str(read(student, path, final_assistant="drop").digest)

    one = digest({"messages": asked("a", "x"), "id": 1}, {"messages": asked("b", "y")})
    same = digest({"prompt": asked("a", "z")}, {"id": 2, "prompt": asked("b")})
    assert one == same
    assert one != digest({"prompt": asked("b")}, {"prompt": asked("a")})
    # The student's template leaves the name out; another tokenizer's teacher may not.
    named = [{**asked("a")[0], "name": "ann"}]
    assert one != digest({"prompt": named}, {"prompt": asked("b")})
    # Its template may print fields in their order.
    orders = ({"x": 1, "y": 2}, {"y": 2, "x": 1})
    digests = {digest({"prompt": [{**asked("a")[0], "data": order}]}) for order in orders}
    assert len(digests) == 2


def test_every_epoch_takes_every_prompt_once_in_its_own_order() -> None:
    order = PromptOrder(seed=3, count=10)
    taken = [index for start in range(0, 40, 4) for index in order.take(start, 4)]
    epochs = [taken[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order.take(7, 6) == taken[7:13]
    assert PromptOrder(seed=4, count=10).take(0, 10) != epochs[0]


def test_the_template_sees_a_message_as_a_teacher_s_server_shows_it(
    student_model_dir: Path, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m | tojson }}{% endfor %}{{ tools | tojson }}")
    student = load_student(
        StudentSettings(model=str(student_model_dir), device="cpu", chat_template=template)
    )
    message = {"z": {"b": 1.0, "a": 2**60}, "content": "hello", "a": [None], "role": "user"}
    tools = '[{"b": 1, "a": 1.0}]'
    path = write(tmp_path / "a.jsonl", [{"prompt": [message], "tools": tools}])
    (item,) = read(student, path, columns={"tools": "tools"}).train
    shown = {name: message[name] for name in ("role", "content", "z", "a")}
    assert student.tokenizer.decode(item.token_ids) == json.dumps(shown) + tools
    assert isinstance(item.source, ChatPrompt)
    assert json.dumps(item.source.messages[0].extra) == json.dumps({"z": shown["z"], "a": [None]})


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ('[{"a": NaN}]', "NaN is not a JSON number"),
        ('[{"a": 1, "a": 2}]', "the same key twice"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ("[1e999]", "beyond the range"),
    ],
)
def test_json_in_a_column_is_read_as_a_teacher_s_server_reads_it(
    student: Student, tmp_path: Path, tools: str, message: str
) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": USER, "tools": tools}])
    with pytest.raises(
        ConfigurationError, match=f"line 1: column 'tools' is not JSON: .*{message}"
    ):
        read(student, path, columns={"tools": "tools"})
