"""The first example as the loss sees it, token by token: a person finds a wrong
template or mask here before hours are spent.

The response is the start of the one that step 1 draws for this prompt: streams
belong to rollouts (rollout/sampling.py), so drawing it twice changes nothing.
"""

from __future__ import annotations

import os
from typing import TextIO

from student_trainer.config import RolloutSettings
from student_trainer.loss_config import MaskSettings
from student_trainer.masking import token_mask
from student_trainer.model import Student
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.generate import generate

RESPONSE_TOKENS = 48
PROMPT_HEAD, PROMPT_TAIL = 8, 24
COLOURS = {"prompt": "\x1b[2m", "masked": "\x1b[31m"}
PLAIN = "\x1b[0m"


def first_example(
    student: Student,
    prompt: PromptItem,
    rollout: RolloutSettings,
    mask: MaskSettings,
    seed: int,
    *,
    colour: bool = False,
) -> str:
    """A table of the prompt's tokens and of the response's first ``RESPONSE_TOKENS``.

    Args:
        prompt: the first one of step 1.
    """
    limit = min(rollout.max_new_tokens, RESPONSE_TOKENS)
    settings = rollout.model_copy(update={"group_size": 1, "max_new_tokens": limit})
    (drawn,) = generate(student, [prompt], settings, seed=seed, step=1)
    masked = token_mask(mask, student.tokenizer, student.vocabulary_size).masked(drawn.token_ids)
    return table(student, drawn, masked.tolist(), colour=colour)


def table(student: Student, drawn: Rollout, masked: list[bool], *, colour: bool = False) -> str:
    """One line a token: place, id, what the loss does with it, text. A long prompt's
    middle is counted, not shown."""
    prompt, response = drawn.prompt.token_ids.tolist(), drawn.token_ids.tolist()
    end = "ends itself" if drawn.finished else f"shown up to token {len(response)}"
    lines = [
        f"first example: {len(prompt)} prompt tokens (no loss); response ({end}): "
        f"{masked.count(False)} tokens with loss, {masked.count(True)} masked",
        f"{'place':>7}  {'id':>7}  {'':<8}token",
    ]
    hidden = len(prompt) - PROMPT_HEAD - PROMPT_TAIL
    for place, token in enumerate(prompt):
        if hidden > 0 and place == PROMPT_HEAD:
            lines.append(f"{'...':>7}  {hidden} more prompt tokens")
        if hidden <= 0 or not PROMPT_HEAD <= place < PROMPT_HEAD + hidden:
            lines.append(_line(student, place - len(prompt), token, "prompt", colour))
    for place, token in enumerate(response):
        kind = "masked" if masked[place] else "loss"
        lines.append(_line(student, place, token, kind, colour))
    return "\n".join(lines)


def wants_colour(stream: TextIO) -> bool:
    """On a terminal, unless ``NO_COLOR`` is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def _line(student: Student, place: int, token: int, kind: str, colour: bool) -> str:
    text = repr(student.tokenizer.decode([token]))
    line = f"{place:>7}  {token:>7}  {kind:<8}{text}"
    return f"{COLOURS[kind]}{line}{PLAIN}" if colour and kind in COLOURS else line
