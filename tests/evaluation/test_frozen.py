"""Frozen positions: spread evenly, chosen once, read back as written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import TextPrompt

from student_trainer.evaluation import freeze_continuations, load_frozen, save_frozen
from student_trainer.evaluation.evaluate import frozen_selections
from student_trainer.evaluation.frozen import spread_rows
from student_trainer.rollout.base import PromptItem
from student_trainer.settings.evaluation import EvaluationSettings
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student

SETTINGS = EvaluationSettings(prompts=8, frozen_rows=256, max_new_tokens=24, batch_size=8)
ROLLOUT = RolloutSettings(temperature=1.0, top_p=0.9)


@st.composite
def lengths_and_count(draw: st.DrawFn) -> tuple[list[int], int]:
    lengths = draw(st.lists(st.integers(1, 60), min_size=1, max_size=40))
    return lengths, draw(st.integers(0, sum(lengths)))


@given(lengths_and_count())
def test_rows_are_as_many_as_asked_and_each_once(case: tuple[list[int], int]) -> None:
    lengths, count = case
    chosen = spread_rows(lengths, count)
    assert sum(map(len, chosen)) == count
    for length, rows in zip(lengths, chosen, strict=True):
        assert rows.dtype == np.int32
        assert (np.diff(rows) > 0).all()
        assert all(0 <= row < length for row in rows)
        # The share of each response is its share of all positions, to rounding.
        assert abs(len(rows) - count * length / sum(lengths)) < 1


def test_no_position_is_favoured() -> None:
    chosen = np.concatenate(spread_rows([40] * 60, 600))
    counts = np.bincount(chosen, minlength=40)
    assert counts.min() >= 10
    assert counts.max() <= 20


def test_more_answers_are_drawn_until_the_positions_suffice(
    noisy_student: Student, held_out: list[PromptItem]
) -> None:
    frozen = freeze_continuations(noisy_student, held_out, SETTINGS, ROLLOUT, 0, None)
    assert frozen.rows == 256
    assert len(frozen.continuations) > len(held_out)
    assert {c.prompt_id for c in frozen.continuations} == {p.prompt_id for p in held_out}
    # Answers of later rounds are other answers.
    assert len({c.token_ids for c in frozen.continuations}) == len(frozen.continuations)
    assert freeze_continuations(noisy_student, held_out, SETTINGS, ROLLOUT, 0, None) == frozen
    assert freeze_continuations(noisy_student, held_out, SETTINGS, ROLLOUT, 1, None) != frozen


def test_prompts_that_are_the_same_to_the_student_alone_keep_their_continuations(
    noisy_student: Student, held_out: list[PromptItem]
) -> None:
    first = held_out[0]
    prompts = [first, dataclasses.replace(first, source=TextPrompt("another at the teacher"))]
    settings = SETTINGS.model_copy(update={"prompts": 2, "frozen_rows": 16})
    frozen = freeze_continuations(noisy_student, prompts, settings, ROLLOUT, 0, None)
    found = frozen_selections(frozen, prompts)
    sources = [prompt.source for prompt in prompts]
    assert [s.prompt.source for s in found] == (sources * len(found))[: len(found)]
    assert len(found) > 1
    # A file of before: each is of the last prompt of its id, and the digest is the same.
    old = dataclasses.replace(
        frozen,
        continuations=tuple(dataclasses.replace(c, place=None) for c in frozen.continuations),
    )
    values = dataclasses.asdict(old)
    for continuation in values["continuations"]:
        del continuation["place"]
    assert old.digest == hashlib.sha256(json.dumps(values).encode()).hexdigest()
    assert {s.prompt.source for s in frozen_selections(old, prompts)} == {prompts[1].source}


def test_too_few_positions_are_an_error(noisy_student: Student, held_out: list[PromptItem]) -> None:
    settings = SETTINGS.model_copy(update={"max_new_tokens": 2, "prompts": 4})
    with pytest.raises(ConfigurationError, match=r"fewer than the 256 positions"):
        freeze_continuations(noisy_student, held_out, settings, ROLLOUT, 0, None)


def test_too_few_prompts_are_an_error(noisy_student: Student, held_out: list[PromptItem]) -> None:
    settings = SETTINGS.model_copy(update={"prompts": 9})
    with pytest.raises(ConfigurationError, match="asks for 9 prompts and 8 are held out"):
        freeze_continuations(noisy_student, held_out, settings, ROLLOUT, 0, None)


def test_files_give_back_what_was_written(
    noisy_student: Student, held_out: list[PromptItem], tmp_path: Path
) -> None:
    frozen = freeze_continuations(noisy_student, held_out, SETTINGS, ROLLOUT, 0, None)
    path = tmp_path / "evaluation" / "frozen.json"
    save_frozen(frozen, path)
    assert load_frozen(path) == frozen
    assert load_frozen(path).digest == frozen.digest
    assert dataclasses.replace(frozen, seed=1).digest != frozen.digest
    path.write_text('{"prompts": []}')
    with pytest.raises(ConfigurationError, match=r"frozen\.json: it cannot be read"):
        load_frozen(path)
    path.unlink()
    with pytest.raises(ConfigurationError, match="no such file"):
        load_frozen(path)
