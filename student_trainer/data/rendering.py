"""What the student reads of a conversation: its tokenizer's chat template, rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.errors import ConfigurationError


class TemplateRefusedError(ConfigurationError):
    """A chat template raised an error for one conversation."""


def render(
    messages: Sequence[Mapping[str, Any]],
    place: str,
    arguments: Mapping[str, Any],
    tokenizer: Any,
) -> list[int]:
    """Token ids of the conversation with the generation prompt after it.

    Raises:
        ConfigurationError: there is no template.
        TemplateRefusedError: the template failed.
    """
    if not tokenizer.chat_template:
        raise ConfigurationError(
            "the student's tokenizer has no chat template",
            where=place,
            fix='give one in student.chat_template, or prompts as {"prompt": "text"}',
        )
    try:
        rendered = tokenizer.apply_chat_template(
            list(messages),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **arguments,
        )
    except Exception as error:  # a template is a program: it raises what it likes
        raise TemplateRefusedError(
            f"the chat template failed: {error}",
            where=place,
            fix='mend the row, or set data.refused = "drop"',
        ) from error
    return list(rendered["input_ids"])
