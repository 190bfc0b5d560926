"""Positions that are frozen before training, so that no later student can choose them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import Int32

from student_trainer.evaluation.results import FrozenContinuation, FrozenPositions
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.turns.acting import Acting
from student_trainer.rollout.turns.engine import respond
from student_trainer.settings.evaluation import LEAST_ROWS, EvaluationSettings
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student

log = logging.getLogger(__name__)

# Steps of training count from 1, so the responses of evaluation have streams of their own.
FRESH_STEP = -1
FIRST_FROZEN_STEP = -2
ROUNDS = 8
GOLDEN = (5**0.5 - 1) / 2
# The settings that hold prompts out.
HOLD_OUT = "data.held_out, data.held_out_fraction, or with tasks their held_out or prompts_held_out"


def freeze_continuations(
    student: Student,
    held_out: Sequence[PromptItem],
    settings: EvaluationSettings,
    rollout_settings: RolloutSettings,
    seed: int,
    acting: Acting | None,
) -> FrozenPositions:
    """Draws the continuations and chooses their positions; done once, before training.

    Each round draws one continuation per prompt. More rounds follow while there are fewer
    than ``frozen_rows`` positions. Of an episode only the student's own tokens are positions.

    Args:
        acting: what plays episodes; None where no task acts.

    Raises:
        ConfigurationError: there are fewer held-out prompts than the settings require, or
            the student's answers are too short for so many positions.
    """
    prompts = evaluated_prompts(held_out, settings)
    rollouts: list[Rollout] = []
    drawing = evaluation_rollouts(settings, rollout_settings)
    wanted = settings.most_rows
    for number in range(ROUNDS if wanted and prompts else 0):
        step = FIRST_FROZEN_STEP - number
        rollouts += respond(student, prompts, drawing, acting, seed=seed, step=step)
        if sum(r.own_length for r in rollouts) >= wanted:
            break
    found = sum(r.own_length for r in rollouts)
    if found < wanted:
        short = f"{ROUNDS} answers to each of {len(prompts)} held-out prompts have {found} tokens"
        if settings.frozen_rows is not None:
            raise ConfigurationError(
                f"{short}, fewer than the {wanted} positions to freeze",
                where="evaluation.frozen_rows",
                fix="unset it, raise evaluation.prompts or evaluation.max_new_tokens, or set it "
                "to 0",
            )
        little = (
            f": results on fewer than {LEAST_ROWS} are mostly noise" if found < LEAST_ROWS else ""
        )
        log.warning("%s, and all are frozen, not the usual %d%s", short, wanted, little)
    rows = spread_own(rollouts, min(wanted, found))
    return FrozenPositions(
        prompts=tuple(p.prompt_id for p in prompts),
        continuations=tuple(
            FrozenContinuation(
                r.prompt.prompt_id,
                tuple(r.token_ids.tolist()),
                tuple(c.tolist()),
                place % len(prompts),
            )
            for place, (r, c) in enumerate(zip(rollouts, rows, strict=True))
            if len(c)
        ),
        seed=seed,
        temperature=rollout_settings.temperature,
        top_p=rollout_settings.top_p,
        max_new_tokens=settings.max_new_tokens,
    )


def evaluated_prompts(
    held_out: Sequence[PromptItem], settings: EvaluationSettings
) -> Sequence[PromptItem]:
    """The first held-out prompts, as many as the settings ask for.

    Raises:
        ConfigurationError: there are fewer than ``settings.prompts``.
    """
    if settings.prompts is not None and settings.prompts > len(held_out):
        raise ConfigurationError(
            f"it asks for {settings.prompts} prompts and {len(held_out)} are held out",
            where="evaluation.prompts",
            fix=f"lower it to {len(held_out)}, unset it, or hold out more prompts ({HOLD_OUT})",
        )
    return held_out[: settings.most_prompts]


def frozen_prompts(
    frozen: FrozenPositions, held_out: Sequence[PromptItem], settings: EvaluationSettings
) -> Sequence[PromptItem]:
    """The held-out prompts whose continuations were frozen.

    Raises:
        ConfigurationError: ``held_out`` begins with other prompts.
    """
    prompts = evaluated_prompts(held_out, settings)
    if tuple(p.prompt_id for p in prompts) != frozen.prompts:
        raise ConfigurationError(
            "the held-out prompts are not those of the frozen evaluation",
            where="evaluation",
            fix="give the prompts the run was started with, or start another run",
        )
    return prompts


def evaluation_rollouts(
    settings: EvaluationSettings, rollout_settings: RolloutSettings
) -> RolloutSettings:
    """The sampling of training with one response per prompt and the limits of evaluation."""
    return rollout_settings.model_copy(
        update={
            "group_size": 1,
            "max_new_tokens": settings.max_new_tokens,
            "batch_size": settings.batch_size,
        }
    )


def spread_own(rollouts: Sequence[Rollout], count: int) -> list[Int32]:
    """As ``spread_rows``, of the positions of responses that the student wrote."""
    chosen = spread_rows([rollout.own_length for rollout in rollouts], count)
    return [
        np.flatnonzero(rollout.own_rows)[places].astype(np.int32)
        for rollout, places in zip(rollouts, chosen, strict=True)
    ]


def spread_rows(lengths: Sequence[int], count: int) -> list[Int32]:
    """Chooses ``count`` positions among responses of these lengths, evenly.

    A response gets a share by its length. Its positions are equally spaced from an offset
    that differs from response to response, so that no position is favoured. The choice
    depends on the arguments alone.

    Args:
        lengths: n of each response; ``count`` <= their sum.

    Returns:
        One int32 array per response, strictly increasing, in [0, n).
    """
    total = sum(lengths)
    assert count <= total
    chosen, before = [], 0
    for index, length in enumerate(lengths):
        share = count * (before + length) // max(total, 1) - count * before // max(total, 1)
        offset = (index * GOLDEN) % 1.0
        places = (np.arange(share) + offset) * (length / max(share, 1))
        chosen.append(np.minimum(np.floor(places), length - 1).astype(np.int32))
        before += length
    return chosen
