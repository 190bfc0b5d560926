"""The token_table of the first example's tokens."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable

import numpy as np
import pytest
from teacher_proto.types import TextPrompt

from student_trainer.data import load_prompts
from student_trainer.first_example import first_example, token_table, wants_colour
from student_trainer.losses import LsmLoss
from student_trainer.losses.parts.loss import MaskSettings
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.generate import generate
from student_trainer.settings.rollout import ScoringSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student

LINE = re.compile(r" *(-?\d+)  +(\d+)  (prompt|loss|masked) +['\"].*['\"]")


def rows(text: str) -> list[tuple[int, int, str]]:
    found = [LINE.fullmatch(line) for line in text.splitlines()]
    return [(int(m[1]), int(m[2]), m[3]) for m in found if m]


def test_it_shows_what_step_1_draws_and_what_the_loss_uses(
    student: Student, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config()
    prompts = load_prompts(config.data, student.tokenizer).train
    own = generate(student, prompts, config.rollout, seed=5, step=1)[4]
    masked_id = int(own.token_ids[0])
    loss = LsmLoss(mask=MaskSettings(token_ids=(masked_id,)))
    shown = rows(first_example(student, prompts[2], config.rollout, loss, seed=5))
    count = len(prompts[2].token_ids)
    assert shown[:count] == [
        (place - count, int(token), "prompt") for place, token in enumerate(prompts[2].token_ids)
    ]
    assert shown[count:] == [
        (place, int(token), "masked" if token == masked_id else "loss")
        for place, token in enumerate(own.token_ids)
    ]


def test_it_shows_the_tokens_that_are_scored(
    student: Student, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config(rollout={"max_new_tokens": 60})
    prompts = load_prompts(config.data, student.tokenizer).train
    responses = generate(student, prompts, config.rollout, seed=5, step=1)[::2]
    ended = next(r for r in responses if r.finished and 5 < len(r.token_ids) <= 48)
    cut = next(r for r in responses if len(r.token_ids) > 48)
    for response, scoring, expected in (
        (ended, {"scored_share": 0.5}, -(-len(ended.token_ids) // 2)),
        (ended, {"max_scored_tokens": 4}, 4),
        (cut, {"max_scored_tokens": 4}, 4),
        (cut, {"scored_share": 0.5}, 48),
    ):
        settings = ScoringSettings.model_validate(scoring)
        text = first_example(
            student, response.prompt, config.rollout, LsmLoss(), seed=5, scoring=settings
        )
        places = [place for place, _, _ in rows(text) if place >= 0]
        assert places == list(range(expected))
        assert f"response (shown up to token {expected})" in text


def drawn(prompt: int, response: int) -> Rollout:
    item = PromptItem("0", np.arange(3, 3 + prompt, dtype=np.int32), TextPrompt(""))
    ids = np.arange(40, 40 + response, dtype=np.int32)
    return Rollout(item, 0, ids, np.zeros(response, np.float32), finished=False)


def test_a_long_prompt_is_counted_in_its_middle(student: Student) -> None:
    text = token_table(student, drawn(100, 3), ["loss", "masked", "loss"])
    assert "100 prompt tokens (no loss)" in text
    assert "2 tokens with loss, 1 masked" in text
    assert "68 more prompt tokens" in text
    assert [place for place, _, _ in rows(text)] == [*range(-100, -92), *range(-24, 0), 0, 1, 2]
    assert len(rows(token_table(student, drawn(32, 1), ["loss"]))) == 33
    assert "\x1b" not in text
    coloured = token_table(student, drawn(2, 2), ["loss", "masked"], colour=True)
    assert coloured.count("\x1b[31m") == 1
    assert coloured.count("\x1b[2m") == 2


def test_colour_is_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert not wants_colour(io.StringIO())
    master, slave = os.openpty()
    with os.fdopen(master), os.fdopen(slave, "w") as terminal:
        assert wants_colour(terminal)
        monkeypatch.setenv("NO_COLOR", "1")
        assert not wants_colour(terminal)
