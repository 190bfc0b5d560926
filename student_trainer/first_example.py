"""The first example as the loss sees it, token by token, so that a person notices a
wrong template or mask before hours are spent.

The response is the start of the one that step 1 draws for this prompt. Every rollout
has a random stream of its own (rollout/sampling.py), so drawing it twice changes nothing.
A teacher with another tokenizer scores it, and the table shows where its rows are masked.
"""

from __future__ import annotations

import os
from typing import TextIO

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.generate import generate
from student_trainer.settings.loss import LossConfig
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.masking import token_mask
from student_trainer.student.model import Student
from student_trainer.teacher.link import TeacherLink
from student_trainer.update import realigned

RESPONSE_TOKENS = 48
PROMPT_HEAD, PROMPT_TAIL = 8, 24
COLOURS = {"prompt": "\x1b[2m", "masked": "\x1b[31m", "unknown": "\x1b[33m"}
PLAIN = "\x1b[0m"


def first_example(
    student: Student,
    prompt: PromptItem,
    rollout: RolloutSettings,
    loss: LossConfig,
    seed: int,
    *,
    teacher: TeacherLink | None = None,
    reads: str = "",
    colour: bool = False,
) -> str:
    """A table of the prompt's tokens and of the response's first ``RESPONSE_TOKENS``.

    Args:
        prompt: the first prompt of step 1.
        teacher: the teacher when its tokenizer is another, to score the response; else
            None.
        reads: the end of what the teacher reads in place of the prompt's tokens; empty where
            it reads these.

    Raises:
        LsmError: as ``TeacherLink.submit_rollouts``.
    """
    limit = min(rollout.max_new_tokens, RESPONSE_TOKENS)
    settings = rollout.model_copy(update={"group_size": 1, "max_new_tokens": limit})
    (drawn,) = generate(student, [prompt], settings, seed=seed, step=1)
    mask = token_mask(loss.mask, student.tokenizer, student.vocabulary_size)
    masked = mask.masked(drawn.token_ids).tolist()
    kinds = ["masked" if here else "loss" for here in masked]
    if teacher is None:
        return token_table(student, drawn, kinds, reads=reads, colour=colour)
    scores = teacher.submit_rollouts([drawn], max(loss.teacher_top_k, 2), loss.temperature)
    (found,) = scores.result()
    usable = realigned.usable_rows(found, len(kinds), sampled=loss.policy_gradient).tolist()
    kinds = ["unknown" if k == "loss" and not u else k for k, u in zip(kinds, usable, strict=True)]
    known = realigned.describe_realigned(found, teacher)
    return token_table(student, drawn, kinds, known=known, reads=reads, colour=colour)


def token_table(
    student: Student,
    drawn: Rollout,
    kinds: list[str],
    *,
    known: str = "",
    reads: str = "",
    colour: bool = False,
) -> str:
    """One line for each token: place, id, what the loss does with it, text. The middle of a
    long prompt is counted, not shown.

    Args:
        kinds: for each token of the response: loss, masked (by the settings) or unknown
            (no usable row of a teacher with another tokenizer).
        known: what such a teacher knows of the response.
        reads: the end of what the teacher reads in place of the prompt's tokens.
    """
    prompt, response = drawn.prompt.token_ids.tolist(), drawn.token_ids.tolist()
    end = "ends itself" if drawn.finished else f"shown up to token {len(response)}"
    lines = [
        f"first example: {len(prompt)} prompt tokens (no loss); response ({end}): "
        f"{kinds.count('loss')} tokens with loss, {kinds.count('masked')} masked"
        + (f", {kinds.count('unknown')} unknown to the teacher; {known}" if known else ""),
        f"{'place':>7}  {'id':>7}  {'':<8}token",
    ]
    hidden = len(prompt) - PROMPT_HEAD - PROMPT_TAIL
    for place, token in enumerate(prompt):
        if hidden > 0 and place == PROMPT_HEAD:
            lines.append(f"{'...':>7}  {hidden} more prompt tokens")
        if hidden <= 0 or not PROMPT_HEAD <= place < PROMPT_HEAD + hidden:
            lines.append(_line(student, place - len(prompt), token, "prompt", colour))
    if reads:
        lines.append(f"{'':>7}  the teacher reads here its own prompt, which ends with {reads!r}")
    for place, token in enumerate(response):
        lines.append(_line(student, place, token, kinds[place], colour))
    return "\n".join(lines)


def wants_colour(stream: TextIO) -> bool:
    """Whether the stream is a terminal and ``NO_COLOR`` is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def _line(student: Student, place: int, token: int, kind: str, colour: bool) -> str:
    text = repr(student.tokenizer.decode([token]))
    line = f"{place:>7}  {token:>7}  {kind:<8}{text}"
    return f"{COLOURS[kind]}{line}{PLAIN}" if colour and kind in COLOURS else line
