"""What a chat template reads, and which thinking it opens for the assistant."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

import jinja2
from teacher_proto.models.template_clock import follow_clock
from teacher_proto.models.template_names import names_read

# What begins and ends thinking in the templates of published models.
THINKING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
_MARK = re.compile("|".join(re.escape(mark) for pair in THINKING for mark in pair))
_OPENERS = {closer: opener for opener, closer in THINKING}

Thinking = Literal["none", "open", "closed"]


def compiled(template: str) -> Any:
    """The template as transformers compiles it, with the clock of ``template_clock``.

    Raises:
        jinja2.TemplateError: it is no template.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    found = _compile_jinja_template(template)
    follow_clock(found)
    return found


def template_texts(tokenizer: Any) -> Mapping[str, str]:
    """The chat templates of a tokenizer of transformers, by name; empty without one."""
    given = tokenizer.chat_template or {}
    return {"default": given} if isinstance(given, str) else dict(given)


def template_names(tokenizer: Any) -> frozenset[str]:
    """Names that any of the tokenizer's templates reads from what it is given; of a template
    that is broken none."""
    names: set[str] = set()
    for text in template_texts(tokenizer).values():
        try:
            names |= names_read(compiled(text).environment.parse(text))
        except jinja2.TemplateError:
            continue
    return frozenset(names)


def templates_as_json(tokenizer: Any) -> str:
    """Everything of the templates that can change a rendering, as one text: the templates, and
    the special tokens that they print."""
    names = template_names(tokenizer)
    specials = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if k in names}
    return json.dumps([dict(template_texts(tokenizer)), specials], sort_keys=True)


def marks_end(rendered: str) -> bool:
    """Whether a mark of thinking is so near the end of a rendering that the generation prompt
    can have written it."""
    return _MARK.search(rendered[-_FAR:]) is not None


def opened_thinking(text: str, without: str | None, last: object) -> str:
    """What a generation prompt opens, or opens and closes, of thinking; as ``thinking_tail``.

    Args:
        text: the rendering of a conversation.
        without: the same without a generation prompt; None where the template refuses that.
            Where ``text`` does not go on from it, what follows ``last`` is taken.
        last: content of the conversation's last turn, which may have marks itself.
    """
    if without is not None and without != text and text.startswith(without):
        return thinking_tail(text.removeprefix(without))
    said = str(last).strip()
    _, _, after = text.rpartition(said) if said in text and said else ("", "", text)
    return thinking_tail(after[-_FAR:])


def thinking_tail(generation_prompt: str) -> str:
    """What a generation prompt opens, or opens and closes, of thinking: its text from the last
    opening mark on, or from a closing mark that has none; empty when it does neither."""
    marks = list(_MARK.finditer(generation_prompt))
    if not marks:
        return ""
    last = marks[-1]
    if last.group() in _OPENERS:
        opener = _OPENERS[last.group()]
        start = generation_prompt.rfind(opener, 0, last.start())
        return generation_prompt[start if start >= 0 else last.start() :]
    return generation_prompt[last.start() :]


def first_mark(tail: str) -> str:
    """The first mark of a tail of ``thinking_tail``; empty where it has none."""
    found = _MARK.search(tail)
    return found.group() if found else ""


def thinking(tail: str) -> Thinking:
    """Whether a tail of ``thinking_tail`` leaves thinking open."""
    marks = _MARK.findall(tail)
    if not marks:
        return "none"
    return "closed" if marks[-1] in _OPENERS else "open"


# Characters at the end of a rendering in which a generation prompt's marks are looked for.
_FAR = 400
