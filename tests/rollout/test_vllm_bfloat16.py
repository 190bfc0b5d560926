"""bfloat16 with adapters: what is merged writes, and the difference of rounding is bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from student_trainer.rollout.vllm.engine import VllmEngine
from student_trainer.rollout.vllm.gap import BOUNDS, check_gap
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import LoraSettings, StudentSettings
from student_trainer.student.model import load_student
from tests.rollout.test_vllm_engine import LONGEST, SETTINGS, prompts

pytestmark = pytest.mark.vllm


def test_merged_adapters_write_within_the_bound(wide_student_dir: Path) -> None:
    settings = StudentSettings(
        model=str(wide_student_dir),
        device="cpu",
        dtype="bfloat16",
        lora=LoraSettings(rank=4, target_modules="all-linear"),
    )
    student = load_student(settings)
    engine = VllmEngine(student, RolloutSettings.model_validate(SETTINGS), LONGEST)
    try:
        engine.update_weights(0)
        before = engine.generate(prompts(), seed=1, step=1)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            for name, parameter in student.module.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        engine.update_weights(1)
        found = engine.generate(prompts(), seed=1, step=1)
    finally:
        engine.close()
    assert any(
        a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(before, found, strict=True)
    )
    gap = check_gap(student, engine._settings, found)
    assert 1e-5 < gap < BOUNDS[torch.bfloat16]
    assert all(np.isfinite(rollout.log_probs).all() for rollout in found)
    print(f"gap {gap:.4g}")
