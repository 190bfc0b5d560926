"""A row's conversation: its messages, as the templates of both sides read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ChatMessage

from student_trainer.settings.data import DataSettings

_PLAIN = ("role", "content")


def prompt_messages(value: Any, place: str, settings: DataSettings) -> list[Mapping[str, Any]]:
    """The messages of a prompt, which ends before the assistant's turn.

    Raises:
        ConfigurationError: it is no conversation, or ends with the assistant's turn where
            ``data.final_assistant`` is "error".
    """
    good = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in value
    )
    if not good or not value:
        raise ConfigurationError(
            "a conversation is a list of objects with the texts role and content", where=place
        )
    # As a teacher's server passes them to its template (docs/contract.md).
    messages: list[Mapping[str, Any]] = [
        {"role": m["role"], "content": m["content"], **m} for m in value
    ]
    if messages[-1]["role"] != "assistant":
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


def chat_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[ChatMessage, ...]:
    """The messages as a request holds them."""
    return tuple(
        ChatMessage(m["role"], m["content"], {k: v for k, v in m.items() if k not in _PLAIN})
        for m in messages
    )


def check_text(used: Any, column: str, place: str) -> None:
    """Refuses values that cannot be written as JSON in UTF-8."""
    try:
        json.dumps(used, ensure_ascii=False).encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise ConfigurationError(
            f"column {column!r} is not a text or a conversation: {error}", where=place
        ) from error
