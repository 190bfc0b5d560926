"""The transformers engine in bfloat16 against the conformance suite.

Accuracy is against a float32 forward of the same bfloat16 weights: 8 bits of
mantissa through three layers moved the worst value by 0.11 nats; 0.2 is allowed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from teacher_server.engines.base import Engine
from teacher_server.engines.torch.transformers import TransformersEngine
from tests.engines.conformance import EngineConformance, Subject, running
from tests.support.models import make_tiny_model
from tests.support.reference import plain_logits


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    directory: Path = make_tiny_model(
        tmp_path_factory.mktemp("bf16") / "tiny", seed=3, dtype=torch.bfloat16
    )
    return Subject(
        partial(TransformersEngine, str(directory), device="cpu"),
        plain_logits(directory),
        vocabulary_size=320,
        accuracy=0.2,
        independence=0.2,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(subject: Subject) -> AsyncIterator[Engine]:
    async with running(subject.factory()) as started:
        assert started.description.dtype == "bfloat16"
        yield started


class TestTransformersBfloat16(EngineConformance):
    pass
