"""Which ids end a teacher's turn: of its chat template, generation config and tokenizer."""

from __future__ import annotations

import logging
from typing import Any

from teacher_proto.models.named_ends import named_ends
from teacher_proto.templates.reply_end import reply_end

from teacher_server.failures import is_ending

log = logging.getLogger(__name__)


def turn_ends(tokenizer_source: Any, generation_config: Any | None) -> tuple[int, ...]:
    """The ids, each once: the one that the chat template writes after a reply first, then the
    others, ascending. Empty where nothing names any.

    Args:
        tokenizer_source: a transformers tokenizer.
        generation_config: of transformers; None where the model has none.
    """
    own = template_turn_end(tokenizer_source, generation_config)
    return with_named_ends(own, tokenizer_source, generation_config)


def with_named_ends(
    own: int | None, tokenizer_source: Any, generation_config: Any | None
) -> tuple[int, ...]:
    """``turn_ends`` where the chat template is known to write ``own``."""
    named = sorted(named_ends(tokenizer_source, generation_config))
    return tuple(named) if own is None else (own, *(one for one in named if one != own))


def template_turn_end(tokenizer_source: Any, generation_config: Any | None) -> int | None:
    """The id that the chat template writes after a reply; None where there is no template, or
    it writes text alone, or the tokenizer fails on every text."""
    named = named_ends(tokenizer_source, generation_config)
    try:
        return reply_end(tokenizer_source, named).token_id
    except BaseException as error:  # a panic of native code is no Exception
        if is_ending(error):
            raise
        log.warning("the tokenizer cannot encode a text: %s", type(error).__name__)
        return None


def load_generation_config(model: str) -> Any | None:
    """The generation config of a model folder or hub name, or what its config.json has of
    one; None where neither can be read."""
    from transformers import AutoConfig, GenerationConfig

    try:
        return GenerationConfig.from_pretrained(model)
    except (OSError, ValueError):
        pass
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None
    return GenerationConfig.from_model_config(config)
