"""Which ids end a response, and who says so.

A base model with a chat template often names the end of a text alone: its turns end with a
token that only the template knows. Whoever stops at the end of the text alone goes on into
the next turn, and learns from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.models.named_ends import named_ends as ends_of_files
from teacher_proto.templates.reply_end import ReplyEnd, reply_end

from student_trainer.student.loading import MODEL

STOP_IDS = "rollout.stop_ids"
TEMPLATE = "chat template"


def terminators(
    model: Any,
    tokenizer: Any,
    width: int,
    stop_ids: Sequence[int] = (),
    arguments: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """The ids that end a response, ascending: those of the generation config and the
    tokenizer, the one that the chat template writes after a reply, and ``stop_ids``.

    Args:
        arguments: of the template.

    Raises:
        ConfigurationError: there are none, or the student can never draw one that is named.
    """
    named = named_ends(model, tokenizer, stop_ids)
    fix = "set eos_token_id in generation_config.json"
    tokens = set(tokenizer.get_vocab().values())
    for token, reasons in sorted(named.items()):
        if token < width and token in tokens:
            continue
        why = f"its head has {width} ids" if token >= width else "no token has this id"
        of_settings = reasons == [STOP_IDS]
        raise ConfigurationError(
            f"id {token} is to end a response and can never be drawn: {why}",
            where=STOP_IDS if of_settings else MODEL,
            fix="give ids of the student's tokens"
            if of_settings
            else f"{fix} and eos_token in tokenizer_config.json to tokens of this model",
        )
    own = template_end(model, tokenizer, stop_ids, arguments).token_id
    # One that the head has no row for is never written, in prompts as in responses.
    ids = named.keys() | ({own} if own is not None and own < width else set())
    if not ids:
        raise ConfigurationError(
            "neither its generation config nor its tokenizer names an end-of-text token, and its "
            "chat template writes none after a reply",
            where=MODEL,
            fix=f"{fix}, or give {STOP_IDS}",
        )
    return tuple(sorted(ids))


def template_end(
    model: Any,
    tokenizer: Any,
    stop_ids: Sequence[int] = (),
    arguments: Mapping[str, Any] | None = None,
) -> ReplyEnd:
    """What the student's chat template writes after a reply."""
    return reply_end(tokenizer, named_ends(model, tokenizer, stop_ids), arguments)


def named_ends(model: Any, tokenizer: Any, stop_ids: Sequence[int]) -> dict[int, list[str]]:
    """id -> who names it, for every id that anything but the template names."""
    return ends_of_files(tokenizer, model.generation_config, (STOP_IDS, stop_ids))
