"""What a caller may give a chat template."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from teacher_proto.templates.clock import CLOCK_NAME

# Arguments of apply_chat_template that it passes to the template.
TEMPLATE_OWN = {"tools", "documents"}
# What every template is given, whoever renders it.
GIVEN = {"self", "messages", "raise_exception", CLOCK_NAME}


def reserved_names(*renderers: Callable[..., Any]) -> frozenset[str]:
    """Names of template arguments that something else gives.

    Args:
        renderers: functions of transformers that pass other arguments on to a template.
    """
    names = {name for one in renderers for name in inspect.signature(one).parameters}
    return frozenset(names - TEMPLATE_OWN - {"kwargs"} | GIVEN)


def no_text(tokenizer: Any, arguments: Mapping[str, Any]) -> list[str]:
    """Names of arguments that stand for a special token and are no text, sorted."""
    special = {
        *tokenizer.SPECIAL_TOKENS_ATTRIBUTES,
        *(name for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)),
    }
    return sorted(n for n in special & set(arguments) if not isinstance(arguments[n], str))
