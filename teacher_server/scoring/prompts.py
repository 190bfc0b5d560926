"""Prompts in text and chat messages become token ids of the teacher."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from teacher_proto.models.begin_tokens import begin_text, missing_begin
from teacher_proto.types import (
    ChatPrompt,
    Int32,
    Prompt,
    ServerLimits,
    SpecialTokens,
    TextPrompt,
)

from teacher_server.refusals.facts import TeacherFacts
from teacher_server.refusals.sizes import (
    check_prompt_tokens,
    check_text,
    check_text_fits,
    check_text_tokens,
)
from teacher_server.teachers.tokenizer import TeacherTokenizer

log = logging.getLogger(__name__)


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
    text, where = prompt_text(prompt, where, tokenizer, limits)
    check_text_fits(text_bytes(text), where, facts, limits)

    def check(tokens: int) -> None:
        check_text_tokens(tokens, where, facts)
        check_prompt_tokens(tokens, where, limits)

    ids = tokenizer.encode(text, check)
    return with_begin(ids, prompt, tokenizer, facts)


def prompt_text(
    prompt: TextPrompt | ChatPrompt, where: str, tokenizer: TeacherTokenizer, limits: ServerLimits
) -> tuple[str, str]:
    """(the text, its field); raises InvalidRequestError for one that cannot be rendered or
    is more than is tokenized."""
    if isinstance(prompt, TextPrompt):
        text, where = prompt.text, f"{where}.text"
    else:
        where = f"{where}.chat"
        check_text(text_bytes(prompt), where, limits)
        text = tokenizer.render(prompt, where)
    check_text(text_bytes(text), where, limits)
    return text, where


def with_begin(
    ids: Int32, prompt: Prompt, tokenizer: TeacherTokenizer, facts: TeacherFacts
) -> Int32:
    """``ids`` of a text after those of the tokenizer's begin tokens that it asks for and does
    not begin with; of a conversation as they are, since the template writes what it wants."""
    if not isinstance(prompt, TextPrompt) or not tokenizer.begin_ids:
        return ids
    missing = missing_begin(tokenizer.begin_ids, ids[: len(tokenizer.begin_ids)].tolist())
    if not missing:
        return ids
    if prompt.special_tokens == SpecialTokens.ADD:
        return begin_text(tokenizer.begin_ids, ids)
    names = " ".join(one.text for one in tokenizer.token_texts(missing))
    _say_missing(facts.name, tokenizer.hash, names)
    return ids


@cache
def _say_missing(teacher: str, tokenizer: str, names: str) -> None:
    """Logs once for a teacher and its tokenizer that texts are read without their begin."""
    log.warning(
        "texts are read without %s, which the tokenizer of teacher %s puts before a text; a "
        "request whose text has special_tokens=add is read with it",
        names,
        teacher,
    )


def text_bytes(value: Any) -> int:
    """Bytes in UTF-8 of all text in a prompt or a plain value."""
    match value:
        case str():
            # One of ASCII letters has its length as it is: a copy of it would take its time.
            return len(value if value.isascii() else value.encode("utf-8", "surrogatepass"))
        case TextPrompt(text):
            return text_bytes(text)
        case ChatPrompt(messages, _, template_arguments, _):
            parts = [(m.role, m.content, m.extra) for m in messages]
            return text_bytes(parts) + text_bytes(template_arguments)
        case Mapping():
            return sum(text_bytes(key) + text_bytes(inner) for key, inner in value.items())
        case list() | tuple():
            return sum(map(text_bytes, value))
        case _:
            return 0
