"""The first example as the loss sees it, token by token, so that a person notices a
wrong template or mask before hours are spent.

The response is the start of the one that step 1 draws for this prompt. Every rollout
has a random stream of its own (rollout/sampling.py), so drawing it twice changes nothing.
A teacher with another tokenizer scores it, and the table shows where its rows are masked or
coarse, and why.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from teacher_proto.types import CLASSES_WITH_REASON, ContinuationScores

from student_trainer.losses import Loss
from student_trainer.losses.parts.loss import RowsAsked
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.generate import generate
from student_trainer.settings.rollout import RolloutSettings, ScoringSettings
from student_trainer.student.masking import token_mask
from student_trainer.student.model import Student
from student_trainer.teacher.link import TeacherLink
from student_trainer.teacher.mask_reasons import EXPLAINED, reason_name
from student_trainer.update import realigned

RESPONSE_TOKENS = 48
PROMPT_HEAD, PROMPT_TAIL = 8, 24
COLOURS = {
    "prompt": "\x1b[2m",
    "masked": "\x1b[31m",
    "unknown": "\x1b[33m",
    "coarse": "\x1b[36m",
}
# Why a row that is neither masked nor coarse is unknown to a loss at the sampled token.
NOT_CERTIFIED = "SAMPLED"
PLAIN = "\x1b[0m"


def first_example(
    student: Student,
    prompt: PromptItem,
    rollout: RolloutSettings,
    loss: Loss,
    seed: int,
    *,
    scoring: ScoringSettings | None = None,
    teacher: TeacherLink | None = None,
    asked: RowsAsked | None = None,
    reads: str = "",
    colour: bool = False,
) -> str:
    """A table of the prompt's tokens and of the response's first ``RESPONSE_TOKENS``.

    Args:
        prompt: the first prompt of step 1.
        scoring: how much of a response is scored; None: all.
        teacher: the teacher when its tokenizer is another, to score the response; else
            None.
        asked: what is asked of that teacher's rows; None: what the loss asks of any.
        reads: the end of what the teacher reads in place of the prompt's tokens; empty where
            it reads these.

    Raises:
        LsmError: as ``TeacherLink.submit_rollouts``.
    """
    drawn = first_response(student, prompt, rollout, seed)
    if scoring is not None:
        drawn = drawn.first(scored_tokens(drawn, scoring))
    mask = token_mask(loss.mask, student.tokenizer, student.vocabulary_size)
    masked = mask.masked(drawn.token_ids).tolist()
    kinds = ["masked" if here else "loss" for here in masked]
    if teacher is None:
        return token_table(student, drawn, kinds, reads=reads, colour=colour)
    found = realigned_rows(teacher, drawn, asked or loss.asks(realigned=True), loss.temperature)
    usable = realigned.usable_rows(found, len(kinds), sampled=loss.at_sampled_token).tolist()
    reasons = row_reasons(found, usable)
    for place, kind in enumerate(kinds):
        if kind == "loss" and reasons[place]:
            kinds[place] = "coarse" if usable[place] else "unknown"
    known = realigned.describe_realigned(found, teacher)
    return token_table(
        student, drawn, kinds, known=known, reasons=reasons, reads=reads, colour=colour
    )


def first_response(
    student: Student, prompt: PromptItem, rollout: RolloutSettings, seed: int
) -> Rollout:
    """The first ``RESPONSE_TOKENS`` that step 1 draws after the prompt."""
    limit = min(rollout.max_new_tokens, RESPONSE_TOKENS)
    settings = rollout.model_copy(update={"group_size": 1, "max_new_tokens": limit})
    (drawn,) = generate(student, [prompt], settings, seed=seed, step=1)
    return drawn


def scored_tokens(drawn: Rollout, scoring: ScoringSettings) -> int:
    """How many of the tokens that are shown are scored. Of a response that goes on, a share is
    not known, and is more than that of the tokens that are shown."""
    if drawn.finished:
        return scoring.scored(len(drawn.token_ids))
    return scoring.max_scored_tokens or len(drawn.token_ids)


def realigned_rows(
    teacher: TeacherLink, drawn: Rollout, asked: RowsAsked, temperature: float
) -> ContinuationScores:
    """What the loss would get of a teacher with another tokenizer.

    Args:
        asked: what the loss asks of its rows.

    Raises:
        LsmError: as ``TeacherLink.submit_rollouts``.
    """
    scores = teacher.submit_rollouts(
        [drawn],
        max(asked.top_k, 2),
        temperature,
        log_tail=asked.log_tail,
        coarse=asked.coarse,
    )
    return scores.result()[0]


def row_reasons(scores: ContinuationScores, usable: Sequence[bool]) -> list[str]:
    """Why each row is masked, coarse or not usable, by its name in ``EXPLAINED`` or
    ``NOT_CERTIFIED``; empty for rows that hold what the loss asks for.

    Args:
        usable: for each row, whether the loss can use it.
    """
    block = scores.realignment
    if block is None:
        return ["" if here else reason_name(0) for here in usable]
    told = [0] * len(usable) if block.mask_reason is None else block.mask_reason.tolist()
    return [
        reason_name(why) if kind in CLASSES_WITH_REASON else "" if here else NOT_CERTIFIED
        for kind, why, here in zip(block.position_class.tolist(), told, usable, strict=True)
    ]


def token_table(
    student: Student,
    drawn: Rollout,
    kinds: list[str],
    *,
    known: str = "",
    reasons: Sequence[str] = (),
    reads: str = "",
    colour: bool = False,
) -> str:
    """One line for each token: place, id, what the loss does with it, why where the teacher
    knows less of it, text. The middle of a long prompt is counted, not shown.

    Args:
        kinds: for each token of the response: loss, masked (by the settings), unknown (no
            usable row of a teacher with another tokenizer) or coarse (with a loss on its ids
            and the rest).
        known: what such a teacher knows of the response.
        reasons: of ``row_reasons``, for each token; empty with one tokenizer.
        reads: the end of what the teacher reads in place of the prompt's tokens.
    """
    prompt, response = drawn.prompt.token_ids.tolist(), drawn.token_ids.tolist()
    whole = drawn.finished and drawn.length == len(response)
    end = "ends itself" if whole else f"shown up to token {len(response)}"
    across = f", {kinds.count('coarse')} coarse, {kinds.count('unknown')} unknown to the teacher"
    width = max((len(reason) + 2 for reason in reasons if reason), default=0)
    lines = [
        f"first example: {len(prompt)} prompt tokens (no loss); response ({end}): "
        f"{kinds.count('loss')} tokens with loss, {kinds.count('masked')} masked"
        + (f"{across}; {known}" if known else ""),
        f"{'place':>7}  {'id':>7}  {'':<8}{'why' if width else '':<{width}}token",
    ]
    hidden = len(prompt) - PROMPT_HEAD - PROMPT_TAIL
    for place, token in enumerate(prompt):
        if hidden > 0 and place == PROMPT_HEAD:
            lines.append(f"{'...':>7}  {hidden} more prompt tokens")
        if hidden <= 0 or not PROMPT_HEAD <= place < PROMPT_HEAD + hidden:
            lines.append(
                _line(student, place - len(prompt), token, "prompt", f"{'':{width}}", colour)
            )
    if reads:
        lines.append(f"{'':>7}  the teacher reads here its own prompt, which ends with {reads!r}")
    for place, token in enumerate(response):
        why = reasons[place] if reasons and kinds[place] in ("unknown", "coarse") else ""
        lines.append(_line(student, place, token, kinds[place], f"{why:{width}}", colour))
    return "\n".join([*lines, *_legend(kinds, reasons)])


def _legend(kinds: Sequence[str], reasons: Sequence[str]) -> list[str]:
    """A line for each reason that the table shows: how often, and what it means."""
    shown = zip(kinds, reasons, strict=False)
    counts = Counter((kind, why) for kind, why in shown if kind in ("unknown", "coarse"))
    texts = {**EXPLAINED, NOT_CERTIFIED: "the sampled token is not certified"}
    return [
        f"{'':>7}  {count} {kind}, {why}: {texts[why]}"
        for (kind, why), count in counts.most_common()
    ]


def wants_colour(stream: TextIO) -> bool:
    """Whether the stream is a terminal and ``NO_COLOR`` is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def _line(student: Student, place: int, token: int, kind: str, why: str, colour: bool) -> str:
    text = repr(student.tokenizer.decode([token]))
    line = f"{place:>7}  {token:>7}  {kind:<8}{why}{text}"
    return f"{COLOURS[kind]}{line}{PLAIN}" if colour and kind in COLOURS else line
