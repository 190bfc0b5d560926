"""The transformers engine on SmolLM2-135M in float32 against the conformance suite.

Real weights give peaked rows and a vocabulary of 49,152. The model is the one the
quickstart prepares; where it has not been prepared, these tests are skipped.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio

from teacher_server.engines.base import Engine
from teacher_server.engines.torch.transformers import TransformersEngine
from tests.engines.conformance import EngineConformance, Subject, running
from tests.support.reference import plain_logits


@pytest.fixture(scope="module")
def subject() -> Subject:
    from student_trainer.quickstart.prepare import model_dir

    directory = model_dir()
    if not directory.is_dir():
        pytest.skip(f"no prepared SmolLM2 in {directory}: `make quickstart` prepares it")
    factory = partial(TransformersEngine, str(directory), dtype="float32", device="cpu")
    return Subject(factory, plain_logits(directory), vocabulary_size=49152, rounds=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(subject: Subject) -> AsyncIterator[Engine]:
    async with running(subject.factory()) as started:
        yield started


class TestSmolLM2(EngineConformance):
    pass
