"""vLLM on a GPU as in production, compiled, in bfloat16, with an adapter beside the base.

The reference is the float32 forward of the same weights on the CPU.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from teacher_server.engines.base import Engine
from tests.engines.adapted import Adapted
from tests.engines.conformance import (
    EngineConformance,
    Subject,
    assert_equals_reference,
    make_job,
    running,
)
from tests.engines.vllm_subjects import vllm_engine
from tests.support.adapters import make_adapter, merged
from tests.support.models import make_tiny_model
from tests.support.reference import plain_logits

pytestmark = [pytest.mark.gpu, pytest.mark.vllm]

SIZE = 320
BFLOAT16 = 0.25


@pytest.fixture(scope="module")
def model(gpu: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    return make_tiny_model(
        tmp_path_factory.mktemp("models") / "bfloat16",
        dtype=torch.bfloat16,
        num_attention_heads=2,
        num_key_value_heads=1,
    )


@pytest.fixture(scope="module")
def subject(model: Path) -> Subject:
    def factory(**changes: Any) -> Engine:
        return vllm_engine(model, options={"enforce_eager": False}, **changes)

    return Subject(factory, plain_logits(model), SIZE, accuracy=BFLOAT16, independence=BFLOAT16)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(subject: Subject) -> AsyncIterator[Engine]:
    async with running(subject.factory()) as started:
        yield started


class TestVllmGpu(EngineConformance):
    pass


async def test_an_adapter_on_a_gpu_is_the_merged_model(
    model: Path, subject: Subject, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "math", model)
    adapted = Adapted(vllm_engine(model, options={"enforce_eager": False}), folder)
    reference = Subject(lambda: adapted, plain_logits(merged(model, folder)), SIZE, BFLOAT16)
    job = make_job(1, SIZE, prompt=100, lengths=(30, 7, 64))
    async with running(adapted):
        for _ in range(2):
            assert_equals_reference(reference, job, await adapted.score(job))
            assert_equals_reference(subject, job, await adapted.whole.score(job))
