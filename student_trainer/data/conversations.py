"""From a row of a dataset to its prompt: a text, or the messages that templates read.

What people write in several ways is written in one here, so that the student's template
and the teacher's get the same: ``from`` and ``value``, content in parts, columns of texts,
fields that are null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.codec.strict_json import StrictJsonError, parse_json
from teacher_proto.codec.structs import plain_content, plain_mapping
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ABSENT, ChatMessage, ChatPrompt, TextPrompt

from student_trainer.data.columns import SYSTEM, TEXT, Columns, check_text, own_arguments
from student_trainer.settings.data import DataSettings

# Roles by ShareGPT's names for who speaks.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
TEXT_PARTS = ("text", "input_text", "output_text")
SYSTEM_ROLES = ("system", "developer")
SHAPE = "a conversation is a list of objects with role and content"


def row_prompt(
    row: Mapping[str, Any], place: str, settings: DataSettings, columns: Columns
) -> TextPrompt | ChatPrompt:
    """The prompt in a row.

    Raises:
        ConfigurationError: the row holds none, one that no request can carry, or one that
            ends with the assistant's turn where ``data.final_assistant`` is "error".
    """
    column = columns.prompt(row, place)
    own = own_arguments(row, columns, place)
    value, system = row[column], columns.optional(row, "system")
    check_text([value, own, system], column, place)
    if settings.columns.user is not None:
        value = [{"role": "user", "content": _user_text(value, column, place)}]
    elif isinstance(value, str) and column not in ("messages", "conversations"):
        if settings.system is not None or system:
            raise ConfigurationError(
                f"column {column!r} is a text that is used as it is, and a system prompt is set",
                where=place,
                fix=f'set data.columns.user = "{column}" in place of data.columns.prompt, so that '
                "the text is the user's turn, or unset the system prompt",
            )
        if own or settings.template_arguments:
            columns.ignored[TEXT] += 1
        return TextPrompt(value)
    return conversation(value, row, place, settings, columns)


def conversation(
    value: Any, row: Mapping[str, Any], place: str, settings: DataSettings, columns: Columns
) -> ChatPrompt:
    """A conversation of a row, with the row's system prompt and template arguments.

    Args:
        value: its messages.

    Raises:
        ConfigurationError: as ``row_prompt``.
    """
    own, system = own_arguments(row, columns, place), columns.optional(row, "system")
    messages = [_message(one, n, place) for n, one in enumerate(_listed(value, place))]
    messages = _before_answer(messages, place, settings)
    if system and messages[0].role in SYSTEM_ROLES and messages[0].content != system:
        columns.ignored[SYSTEM] += 1
    messages = _begun(messages, system, settings, place)
    arguments = {**settings.template_arguments, **own}
    return ChatPrompt(
        tuple(messages),
        template_arguments=plain_mapping(arguments, f"{place}: arguments", ConfigurationError),
    )


def _user_text(value: Any, column: str, place: str) -> str:
    if isinstance(value, str):
        return value
    raise ConfigurationError(
        f"column {column!r} holds {_kind(value)}, and the user's turn is a text",
        where=place,
        fix="write a text, or name a conversation in data.columns.prompt",
    )


def _listed(value: Any, place: str) -> list[Any]:
    """The messages of a conversation: of a list, of its JSON text, or of an object of equally
    long lists, which ``datasets`` makes of a list of objects."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = parse_json(value)
        except StrictJsonError as error:
            raise _refused(f"the text is not JSON: {error}", place) from None
    if isinstance(value, dict) and all(isinstance(field, list) for field in value.values()):
        lengths = {len(field) for field in value.values()}
        if len(lengths) == 1:
            turns = zip(*value.values(), strict=True)
            value = [dict(zip(value, turn, strict=True)) for turn in turns]
    if not isinstance(value, list):
        raise _refused(f"this is {_kind(value)}", place)
    if not value:
        raise _refused("this list is empty", place)
    return value


def _message(value: Any, number: int, place: str) -> ChatMessage:
    where = f"messages[{number}]"
    if not isinstance(value, dict):
        raise _refused(f"{where} is {_kind(value)}", place)
    if "role" not in value and "from" in value:
        value = _spoken(value, where, place)
    role = value.get("role")
    if not isinstance(role, str) or not role:
        missing = "has no role" if "role" not in value else f"has {_kind(role)} as its role"
        raise _refused(f"{where} {missing}", place)
    content = _content(value.get("content", ABSENT), role, where, place)
    extra = {k: v for k, v in value.items() if k not in ("role", "content") and v is not None}
    if "tool_calls" in extra:
        extra["tool_calls"] = _calls(extra["tool_calls"], where, place)
        if not extra["tool_calls"]:
            del extra["tool_calls"]
    if (content is None or content is ABSENT) and not extra:
        raise _refused(f"{where} has no content", place)
    return ChatMessage(
        role,
        plain_content(content, role, f"{place}: {where}.content", ConfigurationError),
        plain_mapping(extra, f"{place}: {where}", ConfigurationError),
    )


def _content(value: Any, role: str, where: str, place: str) -> Any:
    """A text; of an assistant's turn, also what stands for none. Parts are put together as
    templates do it, without anything between them."""
    if isinstance(value, str):
        return value
    if value is None or value is ABSENT:
        if role == "assistant":
            return value
        raise _refused(
            f"{where} has no content" if value is ABSENT else f"{where} has null as its content",
            place,
            "give it a text, which may be empty: only an assistant's turn may have no content",
        )
    if not isinstance(value, list):
        raise _refused(
            f"{where} has {_kind(value)} as its content", place, "write the content as a text"
        )
    texts = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        text = part.get("text") if kind in TEXT_PARTS else None
        if not isinstance(text, str):
            what = f"a part of type {kind!r}" if isinstance(kind, str) else _kind(part)
            raise _refused(
                f"{where} has {what} in its content",
                place,
                'only texts can be read: write parts as {"type": "text", "text": "..."}, or leave '
                "the row out",
            )
        texts.append(text)
    return "".join(texts)


def _spoken(value: Mapping[str, Any], where: str, place: str) -> dict[str, Any]:
    """A turn of ShareGPT's form with the names of the chat templates."""
    speaker, said = value["from"], value.get("value")
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise _refused(
            f"{where} is from {speaker!r}, which is none of {', '.join(SPEAKERS)}",
            place,
            "write role and content in place of from and value",
        )
    more = {name: inner for name, inner in value.items() if name not in ("from", "value")}
    if speaker == "function_call":
        calls = _calls(said, where, place)
        return {
            "role": role,
            "content": None,
            "tool_calls": [
                call if "function" in call else {"type": "function", "function": call}
                for call in calls
            ],
            **more,
        }
    return {"role": role, "content": said, **more}


def _calls(value: Any, where: str, place: str) -> list[Any]:
    """Calls of tools: a list of objects, or its JSON text; an object is one call."""
    if isinstance(value, str):
        try:
            value = parse_json(value) if value.strip() else None
        except StrictJsonError as error:
            raise _refused(
                f"{where} has calls of tools that are not JSON: {error}", place
            ) from None
    value = [value] if isinstance(value, dict) else value or []
    if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
        raise _refused(
            f"{where} has calls of tools that are no list of objects",
            place,
            'write tool_calls as [{"type": "function", "function": {"name": ..., "arguments": '
            "...}}]",
        )
    return value


def _begun(
    messages: Sequence[ChatMessage], system: Any, settings: DataSettings, place: str
) -> list[ChatMessage]:
    """The messages after a system prompt: their own, the row's, or ``data.system``."""
    if system is not None and not isinstance(system, str):
        raise ConfigurationError(
            f"column {settings.columns.system!r} holds {_kind(system)}, and a system prompt is a "
            "text",
            where=place,
            fix="write a text or null",
        )
    text = system or settings.system
    if text is None or messages[0].role in SYSTEM_ROLES:
        return list(messages)
    return [ChatMessage("system", text), *messages]


def _before_answer(
    messages: list[ChatMessage], place: str, settings: DataSettings
) -> list[ChatMessage]:
    if messages[-1].role != "assistant":
        return messages
    if settings.final_assistant == "error":
        raise ConfigurationError(
            "the conversation ends with the assistant's turn, which is the student's to write",
            where=place,
            fix='end it with the user\'s turn, or set data.final_assistant = "drop"',
        )
    if len(messages) == 1:
        raise ConfigurationError("the conversation is one assistant's turn", where=place)
    return messages[:-1]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    named = {str: "text", bool: "boolean", int: "number", float: "number"}
    return f"a {named.get(type(value), type(value).__name__)} ({value!r:.40})"


def _refused(why: str, place: str, fix: str = "") -> ConfigurationError:
    return ConfigurationError(
        f"{SHAPE}, and {why}",
        where=place,
        fix=fix or 'write [{"role": "user", "content": "..."}]',
    )
