"""Calls of tools come out of every template as JSON, whatever form a conversation has."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from teacher_proto.templates.tool_calls import render_calls
from transformers.utils.chat_template_utils import render_jinja_template

from tests.realign.real_tokenizers import chat_template

USER = {"role": "user", "content": "What is the weather in Zürich?"}
AFTER = {"role": "tool", "content": "{}", "tool_call_id": "abcdefghi", "name": "weather"}
OBJECT = {"city": "Zürich", "days": 3}
TEXT = '{"city": "Zürich", "days": 3}'
ABSENT = object()
Render = Callable[[list[dict[str, Any]]], str]


def called(arguments: Any, content: Any = None) -> list[dict[str, Any]]:
    function = {"name": "weather", "arguments": arguments}
    calls = [{"type": "function", "id": "abcdefghi", "function": function}]
    turn = {"role": "assistant", "content": content, "tool_calls": calls}
    if content is ABSENT:
        del turn["content"]
    return [USER, turn, AFTER]


def renderer(template: str) -> Render:
    def render(messages: list[dict[str, Any]]) -> str:
        (text,), _ = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            add_generation_prompt=True,
            bos_token="<s>",
            eos_token="</s>",
        )
        return str(text)

    return render


# What each template writes of the call.
WRITTEN = {
    "qwen2_5": '{"name": "weather", "arguments": ' + TEXT + "}",
    "qwen3": '{"name": "weather", "arguments": ' + TEXT + "}",
    "llama3_2": '{"name": "weather", "parameters": ' + TEXT + "}",
    "mistral_nemo": '{"name": "weather", "arguments": ' + TEXT + ', "id": "abcdefghi"}',
    "deepseek_v3": "weather\n```json\n" + TEXT + "\n```",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_come_out_of_real_templates_as_json(name: str) -> None:
    render = renderer(chat_template(name))
    for arguments in (OBJECT, TEXT):
        for content in (None, "", ABSENT, []):
            text, form = render_calls(called(arguments, content), render)
            assert WRITTEN[name] in text, (arguments, content)
            assert text == render(form)
            assert "None" not in text


def test_what_a_template_reads_stays_as_it_is() -> None:
    render = renderer(chat_template("qwen3"))
    for arguments in (OBJECT, TEXT, '{"city":"x"}'):
        messages = called(arguments, "")
        assert render_calls(messages, render)[1] == messages
    assert '"arguments": {"city":"x"}}' in render_calls(called('{"city":"x"}'), render)[0]


SIMPLE = "{% for m in messages %}[{{ m['role'] }}]{% endfor %}"
PRINTS = (
    "{% for m in messages %}{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}{{ c['function']['arguments'] }}{% endfor %}{% endfor %}"
)
ADDS = "{% for m in messages %}{{ '<' + m['content'] + '>' }}{% endfor %}"
FAILS = "{{ raise_exception('not this one: ' + messages[1]['tool_calls'][0]['id']) }}"


def test_arguments_that_a_template_prints_as_python_does_are_given_as_text() -> None:
    text, form = render_calls(called(OBJECT), renderer(PRINTS))
    assert text.startswith("What is the weather in Zürich?" + TEXT)
    assert form[1]["tool_calls"][0]["function"]["arguments"] == TEXT
    assert "None" not in text


def test_a_rendering_is_searched_for_a_bounded_part_of_many_calls() -> None:
    """Each search reads the whole rendering: with every call searched for, time grows with the
    square of their number."""
    searched: list[str] = []

    class Rendering(str):
        def __contains__(self, key: str) -> bool:
            searched.append(key)
            return super().__contains__(key)

    messages = [USER]
    for day in range(500):
        messages += called({"city": "Zürich", "days": day}, "")[1:]
    plain = renderer(PRINTS)
    text, form = render_calls(messages, lambda form: Rendering(plain(form)))
    assert len(searched) <= 200
    assert text.count(TEXT[:-2]) == 500
    assert isinstance(form[-2]["tool_calls"][0]["function"]["arguments"], str)


def test_no_arguments_are_an_empty_object() -> None:
    render = renderer("{{ messages[1]['tool_calls'][0]['function']['arguments'] | tojson }}")
    for nothing in ("", "{}", {}):
        assert render_calls(called(nothing), render)[0] == "{}"


def test_content_that_a_template_cannot_add_is_empty() -> None:
    messages = [USER, {"role": "assistant", "content": None, "reasoning": "x"}, USER]
    text, form = render_calls(messages, renderer(ADDS))
    assert "<>" in text
    assert form[1] == {"role": "assistant", "content": "", "reasoning": "x"}


def test_a_template_that_leaves_calls_out_gets_the_conversation_as_it_is() -> None:
    messages = called(TEXT)
    text, form = render_calls(messages, renderer(SIMPLE))
    assert (text, form) == ("[user][assistant][tool]", messages)


def test_the_refusal_is_of_the_conversation_as_it_is() -> None:
    with pytest.raises(Exception, match="not this one: abcdefghi"):
        render_calls(called(TEXT), renderer(FAILS))


def test_a_conversation_without_calls_is_rendered_once() -> None:
    seen: list[Any] = []

    def render(messages: list[dict[str, Any]]) -> str:
        seen.append(messages)
        return json.dumps(messages)

    said = [USER, {"role": "assistant", "content": "None"}, USER]
    assert render_calls(said, render) == (json.dumps(said), said)
    assert seen == [said]
