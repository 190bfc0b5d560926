"""What the student reads of a prompt: the clock, template arguments, thinking, begin-of-text
tokens; and the digest of it."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ChatPrompt, SpecialTokens, TextPrompt
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from student_trainer.data import PromptSets, load_prompts, run_clock
from student_trainer.data.digest import difference, same_prompts
from student_trainer.settings.data import DataSettings
from tests.realign.real_tokenizers import chat_template
from tests.support.models import CHAT_TEMPLATE, END_OF_TEXT, ENGLISH, train_tokenizer

USER = [{"role": "user", "content": "hello there"}]
MONDAY, TUESDAY = "2026-11-30T23:59:58", "2026-12-01T00:00:02"
DATED = "{{ strftime_now('%d %B %Y, %H:%M') }}\n" + CHAT_TEMPLATE
OPENING = CHAT_TEMPLATE.replace("assistant\\n", "assistant\\n<think>\\n")
SWITCHED = CHAT_TEMPLATE.replace(
    "{% if add_generation_prompt %}",
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{% elif add_generation_prompt %}",
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(ENGLISH, 320)


@pytest.fixture
def beginning() -> PreTrainedTokenizerFast:
    """A tokenizer whose post-processor puts a token before a text, and one after it."""
    made = train_tokenizer(ENGLISH, 320)
    begin, end = (made.convert_tokens_to_ids(t) for t in (END_OF_TEXT, "<|im_end|>"))
    made.bos_token = END_OF_TEXT
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{END_OF_TEXT} $A <|im_end|>",
        special_tokens=[(END_OF_TEXT, begin), ("<|im_end|>", end)],
    )
    return made


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., PromptSets]:
    def read(tokenizer: Any, *rows: Any, now: str = "", **settings: Any) -> PromptSets:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_prompts(DataSettings(train=str(path), **settings), tokenizer, now=now)

    return read


def test_a_template_that_prints_the_date_prints_the_runs_on_every_day(
    tokenizer: PreTrainedTokenizerFast, read: Callable[..., PromptSets], tmp_path: Path
) -> None:
    tokenizer.chat_template = DATED
    monday, tuesday = (read(tokenizer, {"messages": USER}, now=now) for now in (MONDAY, TUESDAY))
    (first,), (second,) = monday.train, tuesday.train
    assert tokenizer.decode(first.token_ids).startswith("30 November 2026, 23:59\n")
    assert tokenizer.decode(second.token_ids).startswith("01 December 2026, 00:00\n")
    assert isinstance(first.source, ChatPrompt)
    assert first.source.now == MONDAY
    assert first.prompt_id == second.prompt_id
    assert monday.digest == tuesday.digest
    fixed = load_prompts(DataSettings(train=str(tmp_path / "rows.jsonl"), now=MONDAY), tokenizer)
    assert fixed.train[0].token_ids.tolist() == first.token_ids.tolist()


def test_a_held_out_prompt_is_found_among_the_train_prompts_of_a_template_with_a_date(
    tokenizer: PreTrainedTokenizerFast, read: Callable[..., PromptSets], tmp_path: Path
) -> None:
    tokenizer.chat_template = DATED
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"prompt": USER}) + "\n")
    with pytest.raises(ConfigurationError, match="1 prompts are also in the train file"):
        read(tokenizer, {"messages": USER}, held_out=held_out, now=TUESDAY)


def test_the_clock_is_the_settings_or_that_of_the_first_start(tmp_path: Path) -> None:
    unset = DataSettings(train="rows.jsonl")
    assert run_clock(DataSettings(train="rows.jsonl", now=MONDAY), kept=TUESDAY) == MONDAY
    assert run_clock(unset, kept=TUESDAY) == TUESDAY
    assert len(run_clock(unset)) == len(MONDAY)
    given = tomllib.loads("a = 2026-11-30T23:59:58\nb = 2026-11-30\nc = 2026-11-30T23:59:58Z")
    assert DataSettings(train="rows.jsonl", now=given["a"]).now == MONDAY
    assert DataSettings(train="rows.jsonl", now=given["b"]).now == "2026-11-30T00:00:00"
    for wrong, what in (
        (given["c"], "time zone"),
        ("Monday", "isoformat"),
        (3, "date and a time"),
        (MONDAY + ".5", "whole seconds"),
    ):
        with pytest.raises(ValidationError, match=what):
            DataSettings.model_validate({"train": "rows.jsonl", "now": wrong})


def test_the_digest_names_what_changed(
    tokenizer: PreTrainedTokenizerFast,
    beginning: PreTrainedTokenizerFast,
    read: Callable[..., PromptSets],
) -> None:
    before = read(tokenizer, {"messages": USER}).digest

    def changed(*rows: Any, **template: Any) -> str:
        other = train_tokenizer(ENGLISH, template.get("size", 320))
        other.chat_template = template.get("chat_template", CHAT_TEMPLATE)
        found = difference(before, read(other, *rows or ({"messages": USER},)).digest)
        return found[0] if found else ""

    assert changed() == ""
    assert "train prompts differ" in changed({"messages": [{**USER[0], "name": "ann"}]})
    assert "chat template is not the checkpoint's" in changed(chat_template=OPENING)
    assert "tokenizer reads the train prompts as other tokens" in changed(size=270)
    text = {"prompt": "hello there"}
    without = read(beginning, text, add_bos="never").digest
    found = difference(without, read(beginning, text).digest)
    assert found is not None
    assert 'data.add_bos = "never"' in found[1]


def as_read(sets: PromptSets) -> str:
    """The digest of prompts as versions before this rule took it."""
    digest = hashlib.sha256()
    for prompt in sets.train:
        if isinstance(prompt.source, ChatPrompt):
            source: Any = {
                "messages": [
                    {"role": m.role, "content": m.content, "extra": m.extra}
                    for m in prompt.source.messages
                ],
                "add_generation_prompt": True,
                "template_arguments": prompt.source.template_arguments,
            }
        else:
            assert isinstance(prompt.source, TextPrompt)
            source = {"text": prompt.source.text}
        written = json.dumps(source)
        digest.update(f"{len(prompt.token_ids)} {len(written)}\n".encode())
        digest.update(prompt.token_ids.astype("<i4").tobytes())
        digest.update(written.encode())
    return f"as-read:{digest.hexdigest()}"


def test_a_checkpoint_of_an_earlier_version_resumes_or_is_refused_by_name(
    tokenizer: PreTrainedTokenizerFast,
    beginning: PreTrainedTokenizerFast,
    read: Callable[..., PromptSets],
) -> None:
    rows = (
        {"messages": [*USER, {"role": "user", "content": "é", "name": "ann"}]},
        {"prompt": "a text"},
    )
    plain = read(tokenizer, *rows, template_arguments={"zone": 1.0})
    assert same_prompts(as_read(plain), plain.digest)
    template = {"zone": 1.0}, "{prompt} for you alone"
    told = read(
        tokenizer, *rows, template_arguments=template[0], teacher_prompt_template=template[1]
    )
    found = difference(as_read(plain), told.digest)
    assert found is not None
    assert "what only the teacher reads of them, is not" in found[0]
    other = read(tokenizer, {"prompt": "another"})
    found = difference(as_read(plain), other.digest)
    assert found is not None
    assert "train prompts differ" in found[0]
    without = read(beginning, {"prompt": "a text"}, add_bos="never")
    assert same_prompts(as_read(without), without.digest)
    found = difference(as_read(without), read(beginning, {"prompt": "a text"}).digest)
    assert found is not None
    assert "the token that begins a text" in found[0]
    tokenizer.chat_template = DATED
    yesterday, today = (read(tokenizer, *rows, now=now) for now in (MONDAY, TUESDAY))
    found = difference(as_read(yesterday), today.digest)
    assert found is not None
    assert "prints the date" in found[0]


def test_an_argument_that_the_template_does_not_read_is_said_once(
    tokenizer: PreTrainedTokenizerFast, read: Callable[..., PromptSets]
) -> None:
    rows = [{"messages": USER, "kwargs": {"enable_thinking": False, "zone": n}} for n in range(3)]
    columns = {"template_arguments": "kwargs"}
    (note,) = read(tokenizer, *rows, columns=columns).notes
    assert "does not read enable_thinking, zone" in note
    tokenizer.chat_template = SWITCHED
    (note,) = read(tokenizer, *rows, columns=columns).notes
    assert "does not read zone:" in note
    tools = {"messages": USER, "tools": [{"name": "f"}]}
    (note,) = read(tokenizer, tools, columns={"tools": "tools"}).notes
    assert "does not read tools" in note
    assert (
        read(tokenizer, {"messages": USER}, template_arguments={"enable_thinking": 1}).notes == ()
    )


def test_arguments_that_are_not_the_templates_are_refused(
    tokenizer: PreTrainedTokenizerFast, read: Callable[..., PromptSets]
) -> None:
    for name in (
        *("truncation", "add_generation_prompt", "tokenize", "messages", "conversations"),
        *("strftime_now", "raise_exception", "self"),
    ):
        with pytest.raises(ConfigurationError, match=rf"line 1: {name} is no argument"):
            read(tokenizer, {"messages": USER}, template_arguments={name: True})
    for name in ("eos_token", "bos_token"):
        with pytest.raises(ConfigurationError, match=f"line 1: {name} is the text of a special"):
            read(tokenizer, {"messages": USER}, template_arguments={name: ["x"]})


@pytest.mark.parametrize(
    ("template", "arguments", "thinking"),
    [
        (CHAT_TEMPLATE, {}, ""),
        (OPENING, {}, "<think>\n"),
        (SWITCHED, {}, ""),
        (SWITCHED, {"enable_thinking": False}, "<think>\n\n</think>\n\n"),
        (OPENING.replace("<think>", "[THINK]"), {}, "[THINK]\n"),
        (OPENING.replace("<think>\\n", "</think>"), {}, "</think>"),
        # A template that never asks whether there is to be a generation prompt.
        (OPENING.replace("{% if add_generation_prompt %}", "{% if true %}"), {}, "<think>\n"),
        # One that refuses conversations without.
        (OPENING.replace("{% endif %}", "{% else %}{{ 1 / 0 }}{% endif %}"), {}, "<think>\n"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", {}, ""),
    ],
)
def test_thinking_is_what_the_generation_prompt_opens(
    tokenizer: PreTrainedTokenizerFast,
    read: Callable[..., PromptSets],
    template: str,
    arguments: dict[str, Any],
    thinking: str,
) -> None:
    tokenizer.chat_template = template
    quoting = [{"role": "user", "content": "what does <think>\n mean: <think>"}]
    sets = read(tokenizer, {"messages": USER}, {"messages": quoting}, template_arguments=arguments)
    assert [prompt.thinking for prompt in sets.train] == [thinking] * 2


def test_thinking_of_a_published_template(
    tokenizer: PreTrainedTokenizerFast, read: Callable[..., PromptSets]
) -> None:
    tokenizer.chat_template = chat_template("qwen3")
    quoting = [{"role": "user", "content": "</think> ends <think>"}]
    for value, thinking in ((True, ""), (False, "<think>\n\n</think>\n\n")):
        arguments = {"enable_thinking": value}
        sets = read(tokenizer, {"messages": quoting}, template_arguments=arguments)
        assert sets.train[0].thinking == thinking
        assert sets.notes == ()


def test_a_text_begins_as_the_tokenizer_itself_begins_it_and_never_twice(
    tokenizer: PreTrainedTokenizerFast,
    beginning: PreTrainedTokenizerFast,
    read: Callable[..., PromptSets],
) -> None:
    rows = ({"prompt": "hello"}, {"prompt": f"{END_OF_TEXT}hello"})
    begun, spelt = read(beginning, *rows).train
    assert begun.token_ids.tolist() == spelt.token_ids.tolist()
    assert beginning.decode(begun.token_ids) == f"{END_OF_TEXT}hello"
    assert begun.special_tokens is SpecialTokens.ADD
    bare = read(beginning, *rows, add_bos="never")
    assert beginning.decode(bare.train[0].token_ids) == "hello"
    assert bare.train[0].special_tokens is SpecialTokens.AS_WRITTEN
    (note,) = bare.notes
    assert f"1 text prompts are read without {END_OF_TEXT!r}" in note
    assert tokenizer.decode(read(tokenizer, *rows).train[0].token_ids) == "hello"
    with pytest.raises(ConfigurationError, match="no token that begins a text"):
        read(tokenizer, *rows, add_bos="always")
    with pytest.raises(ConfigurationError, match="the prompt is empty"):
        read(beginning, {"prompt": ""})


def test_a_template_decides_about_the_beginning_of_a_conversation(
    beginning: PreTrainedTokenizerFast, read: Callable[..., PromptSets]
) -> None:
    row = {"messages": USER}
    (note,) = read(beginning, row).notes
    assert f"writes no {END_OF_TEXT!r}" in note
    always = read(beginning, row, add_bos="always")
    assert always.notes == ()
    beginning.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    for setting in ("auto", "always"):
        writes = read(beginning, row, add_bos=setting)
        assert writes.notes == ()
        assert writes.train[0].token_ids.tolist() == always.train[0].token_ids.tolist()
