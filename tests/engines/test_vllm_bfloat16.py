"""vLLM in bfloat16 with a small random model against the conformance suite.

The reference stays the float32 forward of the same weights.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio
import torch

from teacher_server.engines.base import Engine
from tests.engines.conformance import EngineConformance, Subject, running
from tests.engines.vllm_subjects import vllm_engine
from tests.support.models import make_tiny_model
from tests.support.reference import plain_logits

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    directory = make_tiny_model(
        tmp_path_factory.mktemp("models") / "bfloat16",
        dtype=torch.bfloat16,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return Subject(
        partial(vllm_engine, directory, dtype="bfloat16"),
        plain_logits(directory),
        vocabulary_size=320,
        accuracy=0.25,
        independence=0.25,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(subject: Subject) -> AsyncIterator[Engine]:
    async with running(subject.factory()) as started:
        yield started


class TestVllmBfloat16(EngineConformance):
    pass
