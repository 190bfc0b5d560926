"""Calls of tools in the form that a chat template reads.

OpenAI's API has a call's arguments as JSON text, transformers documents them as an object,
and a turn that only calls has null as its content, no text, or none. A template that
expects one of these writes another wrongly: as JSON text within quotes, as Python prints
it, the word None, or not at all. So a conversation with calls is rendered as it is first,
and in the other forms where that comes out wrong.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from teacher_proto.codec.strict_json import StrictJsonError, parse_json
from teacher_proto.types import ABSENT

Message = dict[str, Any]
Messages = list[Message]
# Texts that a rendering is searched for. A template takes all calls alike, and each search
# reads the whole rendering, which grows with the calls.
JUDGED = 64


def render_calls(messages: Messages, render: Callable[[Messages], str]) -> tuple[str, Messages]:
    """The conversation as text, and the messages as they were rendered: as they are, unless
    that fails or writes calls wrongly and another form does not.

    Args:
        render: the template; it may raise what it likes.

    Raises:
        Exception: the template's for the messages as they are, when it fails in every form.
    """
    if not may_vary(messages):
        return render(messages), messages
    rendered: tuple[str, Messages] | None = None
    failure: Exception | None = None
    for form in _forms(messages):
        try:
            text = render(form)
        except Exception as error:
            failure = failure or error
            continue
        if _is_right(text, form, render):
            return text, form
        rendered = rendered or (text, form)
    if rendered is None:
        assert failure is not None
        raise failure
    return rendered


def may_vary(messages: Messages) -> bool:
    """Whether a conversation has other forms: it calls tools, or a turn says nothing."""
    return any(_functions(message) or _silent(message) for message in messages)


def _silent(message: Message) -> bool:
    """Whether an assistant's turn says nothing."""
    return message.get("role") == "assistant" and not message.get("content")


def _functions(message: Message) -> list[Mapping[str, Any]]:
    """What is called: the objects that hold a name and arguments."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list | tuple):
        return []
    objects = [call for call in calls if isinstance(call, Mapping)]
    functions = [call.get("function", call) for call in objects]
    return [function for function in functions if isinstance(function, Mapping)]


def _forms(messages: Messages) -> Iterator[Messages]:
    """The conversation as it is, then with other arguments, then with other content."""
    seen: list[Messages] = []
    for content, arguments in itertools.product(
        (_same, _null, _empty, _absent), (_same, _as_object, _as_text)
    ):
        form = [_arguments(content(message), arguments) for message in messages]
        if form not in seen:
            seen.append(form)
            yield form


def _same(value: Any) -> Any:
    return value


def _null(message: Message) -> Message:
    return _saying(message, None)


def _empty(message: Message) -> Message:
    return _saying(message, "")


def _absent(message: Message) -> Message:
    return _saying(message, ABSENT)


def _saying(message: Message, content: Any) -> Message:
    """A turn that says nothing, with this in the place of its content."""
    if not _silent(message):
        return message
    rest = {name: value for name, value in message.items() if name not in ("role", "content")}
    said = {} if content is ABSENT else {"content": content}
    return {"role": message["role"], **said, **rest}


def _arguments(message: Message, form: Callable[[Any], Any]) -> Message:
    if form is _same or not _functions(message):
        return message
    return {**message, "tool_calls": [_call(call, form) for call in message["tool_calls"]]}


def _call(call: Any, form: Callable[[Any], Any]) -> Any:
    if not isinstance(call, Mapping):
        return call
    function = call.get("function")
    if isinstance(function, Mapping):
        return {**call, "function": _call(function, form)}
    return {**call, "arguments": form(call["arguments"])} if "arguments" in call else call


def _as_object(arguments: Any) -> Any:
    """The object that a text is the JSON of; no arguments are an empty one."""
    if not isinstance(arguments, str):
        return arguments
    try:
        found = parse_json(arguments) if arguments.strip() else {}
    except StrictJsonError:
        return arguments
    return found if isinstance(found, dict) else arguments


def _as_text(arguments: Any) -> Any:
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments


def _is_right(text: str, messages: Messages, render: Callable[[Messages], str]) -> bool:
    """Whether a template wrote the calls, their arguments as JSON, and no word for content
    that is not there."""
    functions = list(itertools.chain(*map(_functions, messages)))
    wrong = (_wrongly(function.get("arguments")) for function in functions)
    if any(one in text for one in itertools.islice(itertools.chain(*wrong), JUDGED)):
        return False
    if any("content" in message and message["content"] is None for message in messages):
        given = json.dumps(messages, ensure_ascii=False, default=str)
        if text.count("None") > given.count("None"):
            return False
    return not functions or text != _without_calls(messages, render)


def _wrongly(arguments: Any) -> list[str]:
    """What a template that takes a call's arguments wrongly writes of them."""
    if isinstance(arguments, str):
        quoted = json.dumps(arguments, ensure_ascii=False)
        return [quoted] if quoted[1:-1] == arguments else [quoted, quoted[1:-1]]
    if isinstance(arguments, dict):
        printed = str(arguments)
        return [] if printed == json.dumps(arguments, ensure_ascii=False) else [printed]
    return []


def _without_calls(messages: Messages, render: Callable[[Messages], str]) -> str | None:
    """The conversation without its calls as text; None where the template refuses that."""
    try:
        return render([{k: v for k, v in m.items() if k != "tool_calls"} for m in messages])
    except Exception:  # a template is a program and may raise anything
        return None
