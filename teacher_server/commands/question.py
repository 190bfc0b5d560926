"""What ``teacher-server inspect`` asks, as its arguments say it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from teacher_proto.errors import ConfigurationError


def body_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The body of ``POST /v1/score``; raises ConfigurationError where the arguments ask
    nothing that can be asked."""
    if (arguments.response is None) == (arguments.response_ids is None):
        raise ConfigurationError(
            "exactly one of --response and --response-ids is needed",
            where="--response",
            fix="say whose tokens are looked at",
        )
    if arguments.tools is not None and arguments.messages is None:
        raise ConfigurationError("tools go with messages", where="--tools", fix="use --messages")
    prompt: dict[str, Any]
    if arguments.prompt is not None:
        prompt = {"text": arguments.prompt}
    elif arguments.messages is not None:
        prompt = {"messages": _list(arguments.messages, "--messages")}
        if arguments.tools is not None:
            prompt["template_arguments"] = {"tools": _list(arguments.tools, "--tools")}
    else:
        prompt = {"token_ids": _ids(arguments.prompt_ids, "--prompt-ids")}
    continuation = (
        {"text": arguments.response}
        if arguments.response is not None
        else {"token_ids": _ids(arguments.response_ids, "--response-ids")}
    )
    crossed = arguments.tokenizer is not None
    body: dict[str, Any] = {
        "prompt": prompt,
        "continuations": [continuation],
        "top_k": arguments.top_k,
        "temperature": arguments.temperature,
        "returns": {"log_tail": arguments.top_k > 0, "realignment": crossed, "coarse": crossed},
    }
    if arguments.teacher is not None:
        body["teacher"] = arguments.teacher
    if crossed:
        body["tokenizer_hash"] = arguments.tokenizer
    return body


def _list(text: str, where: str) -> list[Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"is no JSON ({error})", where=where) from error
    if not isinstance(found, list):
        raise ConfigurationError("is no list", where=where, fix="write a JSON list of objects")
    return found


def _ids(text: str, where: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise ConfigurationError("is no list of ids", where=where, fix="write 1,2,3") from None
