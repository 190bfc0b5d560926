"""Fixtures of the engines' tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from transformers import LlamaModel

from teacher_server.engines.base import Engine
from teacher_server.engines.torch.transformers import TransformersEngine
from tests.engines.conformance import Subject, running
from tests.support.gate import Gate, gated
from tests.support.reference import plain_logits


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as safetensors, prepared once for this machine."""
    from student_trainer.quickstart.prepare import smollm2_dir

    return smollm2_dir()


# The tiny model on the embedded engine; modules about other engines have their own.


@pytest.fixture(scope="module")
def subject(tiny_model_dir: Path) -> Subject:
    return Subject(lambda **_: None, plain_logits(tiny_model_dir), 320)


@pytest.fixture
def gate() -> Iterator[Gate]:
    with gated(LlamaModel) as made:
        yield made


@pytest_asyncio.fixture
async def engine(gate: Gate, tiny_model_dir: Path) -> AsyncIterator[Engine]:
    async with running(TransformersEngine(str(tiny_model_dir), device="cpu")) as started:
        gate.forget()
        try:
            yield started
        finally:
            gate.open()
