"""What conversations hold and a chat template leaves out: fields of messages, and roles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from teacher_proto.types import ChatMessage, ChatPrompt

# Conversations that are rendered without a field or a role to see whether the template reads
# it, and how many names are tried.
TRIED, NAMES = 4, 32
# A template that leaves these out leaves everything out.
SPOKEN = ("user", "assistant")

Render = Callable[[ChatPrompt], str]


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
