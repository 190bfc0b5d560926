"""The transformers engine in float32 against the conformance suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from teacher_server.engines.base import Engine
from teacher_server.engines.torch.transformers import TransformersEngine
from tests.engines.conformance import EngineConformance, Subject, running
from tests.support.reference import plain_logits


@pytest.fixture(scope="module")
def subject(tiny_model_dir: Path) -> Subject:
    factory = partial(TransformersEngine, str(tiny_model_dir), device="cpu")
    return Subject(factory, plain_logits(tiny_model_dir), vocabulary_size=320)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(subject: Subject) -> AsyncIterator[Engine]:
    async with running(subject.factory()) as started:
        yield started


class TestTransformersFloat32(EngineConformance):
    pass
