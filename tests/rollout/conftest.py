"""Fixtures of the rollout engines' tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from student_trainer.settings.student import StudentSettings
from student_trainer.student.model import Student, load_student
from tests.support.models import make_tiny_model
from tests.trainer.conftest import (  # noqa: F401  (fixtures of whole runs)
    make_config,
    run_server,
    student_model_dir,
)

# Tiny models: more threads only wait for each other.
torch.set_num_threads(1)


def make_student(folder: Path, **changes: Any) -> Path:
    """A tiny student with heads as wide as vLLM needs them; some of its responses end early, and
    three of its ids have no token, and the weights of likely ones."""
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.1}
    make_tiny_model(folder, seed=7, **sizes, **changes)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model.resize_token_embeddings(323, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] *= 2.0
        model.lm_head.weight[320:] = model.lm_head.weight[:3]
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wide_student_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("models") / "wide")


@pytest.fixture(scope="session")
def tied_student_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The head's weight is that of the input embedding."""
    return make_student(tmp_path_factory.mktemp("models") / "tied", tie_word_embeddings=True)


@pytest.fixture
def wide_student(wide_student_dir: Path) -> Student:
    return load_student(StudentSettings(model=str(wide_student_dir), device="cpu"))
