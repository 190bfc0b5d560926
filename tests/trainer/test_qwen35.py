"""Students of Qwen3.5: three of four layers carry a state from token to token, which nothing may
carry from one sequence to another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from student_trainer.commands.estimate import (
    activation_bytes,
    activations,
    cache_bytes,
    keys_and_values,
)
from student_trainer.commands.largest_update import Sequences
from student_trainer.rollout.continuous import write_continuously
from student_trainer.rollout.padded import write_padded
from student_trainer.rollout.slots.supported import why_padded
from student_trainer.settings.student import LoraSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student, load_student
from student_trainer.update.batching import micro_batches
from tests.support.models import ENGLISH, make_model_with_images, train_tokenizer
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.test_continuous import ENDS, same_but_for_ties, written
from tests.trainer.test_student_families import load
from tests.trainer.test_update import Case, reference

MakeConfig = Callable[..., TrainConfig]
LORA = {"rank": 2, "alpha": 8.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("qwen35") / "model"
    return make_model_with_images("Qwen3_5", made, tokenizer=train_tokenizer(ENGLISH, 320))


def moved(student: Student) -> Student:
    """The student with adapters that change something, the same ones every time."""
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.module.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2, generator=drawn)
    return student


def test_adapters_are_in_both_kinds_of_attention(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="student_trainer")
    student = load(folder, lora=LoraSettings(**LORA))
    assert not student.packs
    text = caplog.text
    assert "padded, not packed, because its hidden states are not those of padded" in text
    for name in ("2 in_proj_qkv", "2 in_proj_z", "2 out_proj", "1 q_proj", "3 down_proj"):
        assert name in text


@pytest.mark.parametrize("lora", [None, LORA], ids=["weights", "adapters"])
def test_losses_of_padded_micro_batches_are_those_of_each_response_alone(
    folder: Path, make_config: MakeConfig, teacher: LocalTeacher, lora: dict[str, Any] | None
) -> None:
    student = {"model": str(folder), "lora": lora}
    case = Case(make_config(student=student, optimizer={"micro_batch_tokens": 400}), teacher)
    moved(case.student)
    lengths = {len(r.prompt.token_ids) + len(r.token_ids) for r in case.rollouts}
    assert len(lengths) > 1, "some are padded"
    assert len(micro_batches(case.rollouts, 400, packs=False)) < len(case.rollouts)
    figures, gradients = case.gradients()
    alone = load_student(case.config.student)
    loss, expected = reference(moved(alone), case.rollouts, case.scores, "token")
    assert figures.losses == [pytest.approx(loss, abs=1e-6)]
    for name, gradient in gradients.items():
        apart = float((gradient - expected[name]).norm())
        assert apart <= 1e-4 * float(expected[name].norm()), name
    assert any("linear_attn" in name for name in gradients)


def test_responses_that_enter_and_leave_are_those_of_padded_batches(folder: Path) -> None:
    student = replace(moved(load(folder, lora=LoraSettings(**LORA))), terminators=ENDS)
    assert why_padded(student) == ""
    (own, _), (padded, _) = (written(w, student) for w in (write_continuously, write_padded))
    assert {r.finished for r in own} == {True, False}, "the case needs both"
    for one, other in same_but_for_ties(own, padded):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)


def test_the_estimate_counts_states_once_and_keys_by_token(folder: Path) -> None:
    student = load(folder)
    config = student.causal_model.config.get_text_config()
    key, value = config.linear_key_head_dim, config.linear_value_head_dim
    width = 2 * config.linear_num_key_heads * key + config.linear_num_value_heads * value
    states = config.linear_num_value_heads * key * value + width * config.linear_conv_kernel_dim
    a_token = 2 * config.num_key_value_heads * config.head_dim
    for tokens in (60, 200):
        assert cache_bytes(student, tokens) == 4 * (2 * states + tokens * a_token)
        assert keys_and_values(student, tokens) == pytest.approx(cache_bytes(student, tokens))
    read = Sequences(60, 180, 1, packed=False)
    measured = activation_bytes(student, read.layout(student))
    assert activations(student, read) == pytest.approx(measured, rel=0.1)
