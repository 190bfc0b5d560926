"""ChatPrompt <-> the JSON text of ``Prompt.chat_json``: order and numbers as they are."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from teacher_proto.codec.json_counts import JsonCounts, beyond
from teacher_proto.codec.strict_json import StrictJsonError, parse_json
from teacher_proto.codec.structs import check_text, plain_content, plain_mapping
from teacher_proto.errors import InvalidRequestError
from teacher_proto.types import ABSENT, ChatMessage, ChatPrompt

Error = InvalidRequestError
# Of one conversation, counted before objects are made of it: as many as in its other form.
MOST = JsonCounts(strings=65_536, objects=16_384, arrays=16_384, keys=65_536, values=65_536)
FIELDS = ("messages", "add_generation_prompt", "template_arguments", "now")
NOW = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", re.ASCII)


def encode_chat_json(prompt: ChatPrompt, where: str) -> str:
    """``prompt`` holds plain values; raises InvalidRequestError for integers that are too
    long to be written."""
    document: dict[str, Any] = {
        "messages": [m.as_read() for m in prompt.messages],
        "add_generation_prompt": prompt.add_generation_prompt,
        "template_arguments": prompt.template_arguments,
    }
    if prompt.now:
        document["now"] = check_now(prompt.now, f"{where}.now")
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        raise Error("a number has too many digits", where=where) from None


def decode_chat_json(text: str, where: str) -> ChatPrompt:
    """Raises InvalidRequestError naming what is not as v1/score.proto has it."""
    kind = beyond(text, MOST)
    if kind:
        raise Error(
            f"holds more {kind} than {getattr(MOST, kind)}",
            where=where,
            fix="send a shorter conversation, or the prompt as text or token ids",
            reason="LIMIT_EXCEEDED",
        )
    try:
        document = parse_json(text)
    except StrictJsonError as error:
        raise Error(str(error), where=where, fix="send one JSON object") from None
    if not isinstance(document, dict):
        raise Error("is no JSON object", where=where, fix="send one JSON object")
    for name in document:
        if name not in FIELDS:
            raise Error(
                f"has a field {check_text(name, where, Error)[:100]!r}",
                where=where,
                fix=f"send {', '.join(FIELDS)}",
            )
    flag = document.get("add_generation_prompt")
    if not isinstance(flag, bool):
        raise Error("must be true or false", where=f"{where}.add_generation_prompt")
    messages = document.get("messages")
    if not isinstance(messages, list):
        raise Error("must be a list of messages", where=f"{where}.messages")
    arguments = document.get("template_arguments", {})
    if not isinstance(arguments, dict):
        raise Error("must be an object", where=f"{where}.template_arguments")
    return ChatPrompt(
        tuple(_message(one, f"{where}.messages[{i}]") for i, one in enumerate(messages)),
        flag,
        plain_mapping(arguments, f"{where}.template_arguments", Error),
        check_now(document["now"], f"{where}.now") if "now" in document else "",
    )


def check_now(now: Any, where: str) -> str:
    """``now`` itself; raises InvalidRequestError unless it is a local date and time."""
    try:
        if isinstance(now, str) and NOW.fullmatch(now):
            datetime.fromisoformat(now)
            return now
    except ValueError:
        pass
    raise Error(
        f"{str(now)[:40]!r} is no local date and time to the second",
        where=where,
        fix="write it as 2026-11-29T05:53:12, without a zone, or leave it out",
    )


def _message(message: Any, where: str) -> ChatMessage:
    if not isinstance(message, dict):
        raise Error("must be an object", where=where)
    if not isinstance(message.get("role"), str):
        raise Error("must be a text", where=f"{where}.role")
    role = check_text(message["role"], f"{where}.role", Error)
    extra = {name: value for name, value in message.items() if name not in ("role", "content")}
    return ChatMessage(
        role,
        plain_content(message.get("content", ABSENT), role, f"{where}.content", Error),
        plain_mapping(extra, where, Error),
    )
