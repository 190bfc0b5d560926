"""What a tokenizer's chat templates are: their digest, and what they read."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from teacher_proto.templates.clock import CLOCK_NAME, clock, follow_clock
from teacher_proto.templates.names import names_read

log = logging.getLogger(__name__)

# The name of a tokenizer's only template, as transformers has it.
DEFAULT = "default"
# Every conversation has them.
GIVEN = {"messages", "add_generation_prompt"}


@dataclass(frozen=True)
class ChatTemplates:
    """The chat templates of a tokenizer.

    Attributes:
        texts: by name; empty when there is none.
        names: that the templates read from what they are given.
        special_tokens: name -> text of those that a template can print.
    """

    texts: Mapping[str, str]
    names: frozenset[str]
    special_tokens: Mapping[str, str]

    @property
    def digest(self) -> str:
        """sha256, hexadecimal, of ``{"special_tokens": ..., "templates": ...}`` as JSON in
        UTF-8, with its keys in alphabetical order, without spaces and with non-ASCII
        characters as they are; of the special tokens those that a template reads. Empty
        without a template."""
        if not self.texts:
            return ""
        read = {name: text for name, text in self.special_tokens.items() if name in self.names}
        fields = {"templates": dict(self.texts), "special_tokens": read}
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def reads_clock(self) -> bool:
        return CLOCK_NAME in self.names

    @property
    def arguments(self) -> tuple[str, ...]:
        """Template arguments that a template reads, sorted."""
        return tuple(sorted(self.names - GIVEN - {CLOCK_NAME} - set(self.special_tokens)))


def chat_templates(source: Any) -> ChatTemplates:
    """Those of a tokenizer that transformers has loaded."""
    given = source.chat_template or {}
    texts = {DEFAULT: given} if isinstance(given, str) else dict(given)
    specials = {k: v for k, v in source.special_tokens_map.items() if isinstance(v, str)}
    names = frozenset().union(*(_names(name, text) for name, text in texts.items()))
    return ChatTemplates(texts, names, specials)


def render(source: Any, rows: list[dict[str, Any]], now: str, arguments: Mapping[str, Any]) -> str:
    """The conversation as text at the time ``now``."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = source.get_chat_template(None, arguments.get("tools"))
    follow_clock(_compiled(template))
    # Not apply_chat_template: in some versions it leaves out fields that are null.
    given = {**source.special_tokens_map, **arguments}
    with clock(now):
        (text,), _ = render_jinja_template([rows], chat_template=template, **given)
    return str(text)


def _compiled(text: str) -> Any:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(text)


def _names(name: str, text: str) -> set[str]:
    """Names that a template reads and does not define itself; none of one that is broken."""
    try:
        environment = _compiled(text).environment
        found = names_read(environment.parse(text))
    except jinja2.TemplateError as error:
        log.warning("the chat template %s cannot be compiled: %s", name, error)
        return set()
    return set(found - (set(environment.globals) - {CLOCK_NAME}))
