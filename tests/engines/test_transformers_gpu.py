"""The transformers engine on a GPU in bfloat16 against the conformance suite.

The reference is the float32 forward of the same weights on the CPU.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio
import torch

from teacher_server.engines.base import Engine
from teacher_server.engines.torch.transformers import TransformersEngine
from tests.engines.conformance import EngineConformance, Subject, running
from tests.support.models import make_tiny_model
from tests.support.reference import plain_logits

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def subject(gpu: str, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    directory = make_tiny_model(
        tmp_path_factory.mktemp("models") / "bfloat16", dtype=torch.bfloat16
    )
    return Subject(
        partial(TransformersEngine, str(directory), device=gpu),
        plain_logits(directory),
        vocabulary_size=320,
        accuracy=0.25,
        independence=0.25,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(subject: Subject) -> AsyncIterator[Engine]:
    async with running(subject.factory()) as started:
        assert started.description.dtype == "bfloat16"
        yield started


class TestTransformersGpu(EngineConformance):
    pass
