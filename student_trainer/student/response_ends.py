"""Which ids end a loaded student's responses, for people and for a run that is resumed."""

from __future__ import annotations

from collections.abc import Sequence

from teacher_proto.templates.reply_end import ReplyEnd

from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student
from student_trainer.student.terminators import STOP_IDS, TEMPLATE, named_ends, template_end


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
    return tuple(sorted(named_ends(student.causal_model, student.tokenizer, stop_ids)))


def describe_terminators(student: Student, settings: RolloutSettings) -> tuple[str, list[str]]:
    """What ends a response and who says so, in one sentence; and what has to be known of it:
    a turn that ends with text alone, a template that cannot be asked."""
    model, tokenizer = student.causal_model, student.tokenizer
    named = named_ends(model, tokenizer, settings.stop_ids)
    end = template_end(model, tokenizer, settings.stop_ids, student.template_arguments)
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
