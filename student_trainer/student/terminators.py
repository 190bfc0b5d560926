"""Which ids end a response, and who says so.

A base model with a chat template often names the end of a text alone: its turns end with a
token that only the template knows. Whoever stops at the end of the text alone goes on into
the next turn, and learns from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.templates.reply_end import ReplyEnd, reply_end

from student_trainer.settings.rollout import RolloutSettings

if TYPE_CHECKING:
    from student_trainer.student.model import Student

MODEL = "student.model"
STOP_IDS = "rollout.stop_ids"
CONFIG, TOKENIZER, TEMPLATE = "generation config", "tokenizer", "chat template"


def terminators(
    model: Any, tokenizer: Any, width: int, stop_ids: Sequence[int] = ()
) -> tuple[int, ...]:
    """The ids that end a response, ascending: those of the generation config and the
    tokenizer, the one that the chat template writes after a reply, and ``stop_ids``.

    Raises:
        ConfigurationError: there are none, or the student can never draw one that is named.
    """
    named = _named(model, tokenizer, stop_ids)
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
    own = template_end(model, tokenizer, stop_ids).token_id
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


def template_end(model: Any, tokenizer: Any, stop_ids: Sequence[int] = ()) -> ReplyEnd:
    """What the student's chat template writes after a reply."""
    return reply_end(tokenizer, _named(model, tokenizer, stop_ids))


def ends_of_before(
    kept: tuple[int, ...] | None, student: Student, stop_ids: Sequence[int]
) -> tuple[int, ...]:
    """The ids that ended the responses of a checkpoint.

    Args:
        kept: what the checkpoint says; None in one of before they were kept, when the
            generation config and the tokenizer alone named them.
    """
    if kept is not None:
        return kept
    return tuple(sorted(_named(student.causal_model, student.tokenizer, stop_ids)))


def describe_terminators(student: Student, settings: RolloutSettings) -> tuple[str, list[str]]:
    """What ends a response and who says so, in one sentence; and what has to be known of it:
    a turn that ends with text alone, a template that cannot be asked."""
    model, tokenizer = student.causal_model, student.tokenizer
    named = _named(model, tokenizer, settings.stop_ids)
    end = template_end(model, tokenizer, settings.stop_ids)
    if end.token_id is not None:
        named.setdefault(end.token_id, []).append(TEMPLATE)
    shown = [
        f"{tokenizer.convert_ids_to_tokens(token)} ({token}: {', '.join(named[token])})"
        for token in student.terminators
    ]
    shown += [f"the text {text!r} (rollout.stop_strings)" for text in settings.stop_strings]
    return f"a response ends with {' or '.join(shown)}", _notes(end, student, settings)


def _notes(end: ReplyEnd, student: Student, settings: RolloutSettings) -> list[str]:
    if end.refusal is not None:
        return [
            "the student's chat template renders no plain conversation, so that how it ends a "
            f"turn is not known ({end.refusal}): name its end in {STOP_IDS} or "
            "rollout.stop_strings if it is none of those"
        ]
    if end.token_id is not None and end.token_id not in student.terminators:
        text = student.tokenizer.convert_ids_to_tokens(end.token_id)
        return [
            f"the student's chat template ends a turn with {text} ({end.token_id}), which its head "
            f"of {student.vocabulary_size} ids cannot write"
        ]
    text = end.text.strip()
    if text and not any(one.strip() in text for one in settings.stop_strings):
        return [
            f"the student's chat template ends a turn with text alone, {end.text!r}: no token ends "
            f"a response there; rollout.stop_strings = [{end.text.rstrip()!r}] would"
        ]
    return []


def _named(model: Any, tokenizer: Any, stop_ids: Sequence[int]) -> dict[int, list[str]]:
    """id -> who names it, for every id that anything but the template names."""
    configured = model.generation_config.eos_token_id
    of_config = configured if isinstance(configured, list | tuple) else [configured]
    named: dict[int, list[str]] = {}
    for token, reason in (
        *((token, CONFIG) for token in of_config),
        (tokenizer.eos_token_id, TOKENIZER),
        *((token, STOP_IDS) for token in stop_ids),
    ):
        if token is not None and reason not in named.get(token, []):
            named.setdefault(token, []).append(reason)
    return named
