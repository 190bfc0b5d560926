"""Fixtures of the engines' tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as safetensors, prepared once for this machine."""
    from student_trainer.quickstart.prepare import smollm2_dir

    return smollm2_dir()


@pytest.fixture(scope="session")
def gpu() -> str:
    """The device for tests that need a GPU; without one they are skipped."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return "cuda"
