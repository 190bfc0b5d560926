"""Prompts in text and chat messages become token ids of the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from teacher_proto.types import (
    ChatPrompt,
    Int32,
    ServerLimits,
    TextPrompt,
)

from teacher_server.refusals.facts import TeacherFacts
from teacher_server.refusals.sizes import check_text, check_text_fits, check_text_tokens
from teacher_server.teachers.tokenizer import TeacherTokenizer


def encoded_prompt(
    prompt: TextPrompt | ChatPrompt,
    where: str,
    tokenizer: TeacherTokenizer,
    facts: TeacherFacts,
    limits: ServerLimits,
) -> Int32:
    """int32 [P]: text encoded, conversations rendered and encoded.

    Raises:
        InvalidRequestError: the conversation cannot be rendered, or the text is too long;
            where its bytes alone show that, before it is rendered or encoded.
    """
    match prompt:
        case TextPrompt(text):
            where = f"{where}.text"
        case ChatPrompt(messages, add_generation_prompt, template_arguments):
            where = f"{where}.chat"
            check_text(text_bytes(prompt), where, limits)
            text = tokenizer.render(
                messages,
                add_generation_prompt=add_generation_prompt,
                template_arguments=template_arguments,
                where=where,
            )
    size = text_bytes(text)
    check_text(size, where, limits)
    check_text_fits(size, where, facts)
    return tokenizer.encode(text, partial(check_text_tokens, where=where, facts=facts))


def text_bytes(value: Any) -> int:
    """Bytes in UTF-8 of all text in a prompt or a plain value."""
    match value:
        case str():
            return len(value.encode("utf-8", "surrogatepass"))
        case TextPrompt(text):
            return text_bytes(text)
        case ChatPrompt(messages, _, template_arguments):
            parts = [(m.role, m.content, m.extra) for m in messages]
            return text_bytes(parts) + text_bytes(template_arguments)
        case Mapping():
            return sum(text_bytes(key) + text_bytes(inner) for key, inner in value.items())
        case list() | tuple():
            return sum(map(text_bytes, value))
        case _:
            return 0
