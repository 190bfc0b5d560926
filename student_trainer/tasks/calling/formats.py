"""The forms in which students write calls of tools, one row each in ``FORMATS``.

Which one a student's chat template writes is found by rendering a call and reading it back
(``format_of``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Call:
    """Attributes:
    name: of the tool.
    arguments: by name.
    problem: why it cannot be read; empty where it can.
    call_id: that the student gave it; empty where it gave none.
    """

    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    call_id: str = field(default="", compare=False)


# Reads the calls in a turn; none where it calls nothing.
Reader = Callable[[str], list[Call]]
# What a student writes between these, before its answer, it does not say.
THINKS, THOUGHT = "<think>", "</think>"


def calls_in(text: str, name: str, *, opened: bool = False) -> list[Call]:
    """The calls in a turn of the student, in order; none where it calls nothing.

    Args:
        text: with special tokens.
        name: of the format, a key of ``FORMATS``.
        opened: as of ``Turn``.
    """
    return FORMATS[name](spoken(text, opened=opened))


def spoken(text: str, *, opened: bool = False) -> str:
    """A turn without the student's thinking, which its end may have cut.

    Args:
        opened: as of ``Turn``.
    """
    if opened and THOUGHT not in text:
        return ""
    return text.rpartition(THOUGHT)[2].partition(THINKS)[0]


def format_of(rendered: str, expected: Call) -> str:
    """The format that a text with one call is written in; empty where it is none of them.

    Args:
        rendered: what a chat template writes of a turn that calls.
        expected: the call.
    """
    found = (name for name, read in FORMATS.items() if read(rendered) == [expected])
    return next(found, "")


def _of_json(text: str, arguments: tuple[str, ...] = ("arguments", "parameters")) -> Call:
    """The call that a JSON object describes."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Call(problem=f"it is no JSON: {str(error)[:100]}")
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return Call(problem='it is no object with a "name"')
    given: Any = next((found[key] for key in arguments if key in found), {})
    said = found.get("id")
    return replace(
        _with_arguments(found["name"], given), call_id=said if isinstance(said, str) else ""
    )


def _with_arguments(name: str, given: Any) -> Call:
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError) as error:
            return Call(name, problem=f"its arguments are no JSON: {str(error)[:100]}")
    if not isinstance(given, dict):
        return Call(name, problem="its arguments are no object")
    return Call(name, given)


_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def _hermes(text: str) -> list[Call]:
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` of Hermes and Qwen."""
    return [_of_json(found.strip()) for found in _TAGGED.findall(text)]


_FUNCTION = re.compile(r"<function=([^>\s]*)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]*)>\n?(.*?)\n?</parameter>", re.DOTALL)


def _tags(text: str) -> list[Call]:
    """``<tool_call><function=NAME><parameter=NAME>value</parameter></function></tool_call>`` of
    Qwen3-Coder and Qwen3.5, whose values are texts, or JSON where they are no text."""
    calls = []
    for found in _TAGGED.findall(text):
        function = _FUNCTION.search(found)
        if function is None:
            calls.append(Call(problem="it has no <function=NAME>"))
            continue
        calls.append(Call(function[1], dict(_PARAMETER.findall(function[2]))))
    return calls


def _mistral(text: str) -> list[Call]:
    """``[TOOL_CALLS]`` of Mistral, with a list of objects, or with a name and its arguments."""
    _, mark, after = text.partition("[TOOL_CALLS]")
    if not mark:
        return []
    if after.lstrip().startswith("["):
        try:
            found, _ = json.JSONDecoder().raw_decode(after.lstrip())
        except (ValueError, RecursionError) as error:
            return [Call(problem=f"it is no JSON: {str(error)[:100]}")]
        if not found:
            return [Call(problem="it is an empty list")]
        return [_of_json(json.dumps(one)) for one in found]
    calls = []
    for part in after.split("[TOOL_CALLS]"):
        name, _, given = part.partition("[ARGS]") if "[ARGS]" in part else _named(part)
        try:
            read, _ = json.JSONDecoder().raw_decode(given.lstrip())
        except (ValueError, RecursionError) as error:
            calls.append(Call(name.strip(), problem=f"its arguments are no JSON: {error!s:.100}"))
            continue
        calls.append(_with_arguments(name.strip(), read))
    return calls


def _named(text: str) -> tuple[str, str, str]:
    name, brace, rest = text.partition("{")
    return name, "", brace + rest


# DeepSeek's marks, such as <|tool_call_begin|> with a wide bar and a low block in place of | and _.
_OPENS, _ENDS, _PARTS = (
    f"<\uff5ctool\u2581{what}\uff5c>" for what in ("call\u2581begin", "call\u2581end", "sep")
)
_DEEPSEEK = re.compile(f"{_OPENS}(.*?)(?:{_ENDS}|\\Z)", re.DOTALL)


def _deepseek(text: str) -> list[Call]:
    """The name of a tool and its arguments, in a block of JSON or without, between the marks of
    DeepSeek."""
    calls = []
    for found in _DEEPSEEK.findall(text):
        first, mark, rest = found.partition(_PARTS)
        if not mark:
            calls.append(Call(problem=f"it has no {_PARTS}"))
            continue
        if first.strip() == "function":
            name, _, rest = rest.partition("\n")
        else:
            name = first
        given = rest.strip().removeprefix("```json").removesuffix("```").strip()
        calls.append(_with_arguments(name.strip(), given))
    return calls


def _llama(text: str) -> list[Call]:
    """``{"name": ..., "parameters": {...}}`` of Llama 3, one or several, among other words."""
    calls: list[Call] = []
    begun = _BARE.search(text)
    while begun is not None:
        try:
            found, end = json.JSONDecoder().raw_decode(text, begun.start())
        except (ValueError, RecursionError) as error:
            return [*calls, Call(problem=f"it is no JSON: {str(error)[:100]}")]
        calls.append(_of_json(json.dumps(found)))
        begun = _BARE.search(text, end)
    return calls


# How a bare call begins; other objects are none.
_BARE = re.compile(r'\{\s*"(?:name|type)"\s*:')

# By name, the most particular first: a format may contain what another one consists of.
FORMATS: Mapping[str, Reader] = {
    "tags": _tags,
    "hermes": _hermes,
    "mistral": _mistral,
    "deepseek": _deepseek,
    "llama": _llama,
}
