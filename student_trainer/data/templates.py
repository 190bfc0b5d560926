"""What a chat template reads and leaves out, and which thinking it opens for the assistant."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jinja2
from teacher_proto.templates.clock import follow_clock
from teacher_proto.templates.names import names_read
from teacher_proto.templates.thinking import THINKING
from teacher_proto.types import ChatMessage, ChatPrompt

_MARK = re.compile("|".join(re.escape(mark) for pair in THINKING for mark in pair))
_OPENERS = {closer: opener for opener, closer in THINKING}

# Conversations that are rendered without a field or a role to see whether the template reads
# it, and how many names are tried.
TRIED, NAMES = 4, 32
# A template that leaves these out leaves everything out.
SPOKEN = ("user", "assistant")

Render = Callable[[ChatPrompt], str]

Thinking = Literal["none", "open", "closed"]


def compiled(template: str) -> Any:
    """The template as transformers compiles it, with the clock of ``templates.clock``.

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


def thinking(tail: str) -> Thinking:
    """Whether a tail of ``thinking_tail`` leaves thinking open."""
    marks = _MARK.findall(tail)
    if not marks:
        return "none"
    return "closed" if marks[-1] in _OPENERS else "open"


# Characters at the end of a rendering in which a generation prompt's marks are looked for.
_FAR = 400


def unread(prompts: Sequence[ChatPrompt], render: Render) -> list[str]:
    """Sentences on the fields of messages and the roles that the template prints nothing of.

    Args:
        render: the template; an error of it means that it reads what is missing.
    """
    fields: dict[str, list[ChatPrompt]] = {}
    roles: dict[str, list[ChatPrompt]] = {}
    for prompt in prompts:
        for name in {name for message in prompt.messages for name in message.extra}:
            fields.setdefault(name, []).append(prompt)
        for role in {message.role for message in prompt.messages}.difference(SPOKEN):
            roles.setdefault(role, []).append(prompt)
    notes = []
    for what, found, without in (
        ("these fields of messages", fields, _without_field),
        ("messages of these roles", roles, _without_role),
    ):
        ignored = [
            f"{name} ({len(having)} prompts)"
            for name, having in sorted(found.items())[:NAMES]
            if all(_same(one, without(one, name), render) for one in having[:TRIED])
        ]
        if ignored:
            notes.append(
                f"the student's chat template prints nothing of {what}: {', '.join(ignored)}"
            )
    return notes


def _same(prompt: ChatPrompt, other: ChatPrompt, render: Render) -> bool:
    if not other.messages:
        return False
    try:
        return render(prompt) == render(other)
    except Exception:  # a template is a program: it raises what it likes
        return False


def _without_field(prompt: ChatPrompt, name: str) -> ChatPrompt:
    def messages() -> Iterator[ChatMessage]:
        for message in prompt.messages:
            extra = {key: value for key, value in message.extra.items() if key != name}
            yield replace(message, extra=extra)

    return replace(prompt, messages=tuple(messages()))


def _without_role(prompt: ChatPrompt, role: str) -> ChatPrompt:
    return replace(prompt, messages=tuple(m for m in prompt.messages if m.role != role))
