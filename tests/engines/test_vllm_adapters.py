"""vLLM with LoRA adapters: each is the model that PEFT merges, and none reads another's cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from teacher_proto.errors import ConfigurationError

from teacher_server.engines.adapter import read_adapter
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

pytestmark = pytest.mark.vllm

SIZE = 320
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(
        tmp_path_factory.mktemp("models") / "wide", num_attention_heads=2, num_key_value_heads=1
    )


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One over every linear layer; one of another rank over parts of what vLLM packs."""
    folder = tmp_path_factory.mktemp("adapters")
    return (
        make_adapter(folder / "math.v1", model, seed=1),
        make_adapter(folder / "code", model, seed=2, rank=12, target_modules=("v_proj", "up_proj")),
    )


@pytest.fixture(scope="module")
def subject(model: Path, adapters: tuple[Path, Path]) -> Subject:
    def factory(**changes: bool) -> Engine:
        return Adapted(vllm_engine(model, max_batch_tokens=64, **changes), *adapters)

    return Subject(factory, plain_logits(merged(model, adapters[0])), SIZE, accuracy=TOLERANCE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(subject: Subject) -> AsyncIterator[Engine]:
    async with running(subject.factory()) as started:
        yield started


class TestVllmAdapter(EngineConformance):
    pass


@pytest.mark.asyncio(loop_scope="module")
async def test_adapters_share_steps_and_never_a_cache(
    engine: Adapted, model: Path, adapters: tuple[Path, Path]
) -> None:
    """One prompt under three models, one after the other and at once."""
    references = {"": Subject(lambda: engine, plain_logits(model), SIZE, accuracy=TOLERANCE)}
    for path in adapters:
        logits = plain_logits(merged(model, path))
        references[path.name] = Subject(lambda: engine, logits, SIZE, accuracy=TOLERANCE)
    base = make_job(50, SIZE, prompt=200, lengths=(20, 20))
    jobs = [replace(base, adapter=name) for name in references]
    for expected in (192 + 2 * 27, 2 * 27):
        for job in jobs:
            result = await engine.whole.score(job)
            # 192 of the prompt's 200 tokens are whole blocks: read once by each model.
            assert result.computed_tokens == expected, job.adapter
            assert_equals_reference(references[job.adapter], job, result)
            for name, other in references.items():
                if name != job.adapter:
                    with pytest.raises(AssertionError):
                        assert_equals_reference(other, job, result)
    generator = np.random.default_rng(0)
    more = jobs + [
        replace(make_job(seed, SIZE, prompt=40, lengths=(12, 30)), adapter=name)
        for seed in (51, 52)
        for name in references
    ]
    for _ in range(3):
        order = [more[index] for index in generator.permutation(len(more))]
        results = await asyncio.gather(*(engine.whole.score(job) for job in order))
        for job, result in zip(order, results, strict=True):
            assert_equals_reference(references[job.adapter], job, result)


@pytest.mark.parametrize(
    ("rank", "targets", "options", "says"),
    [
        (513, ("q_proj",), {}, "rank of 513 is above 512"),
        (16, ("q_proj",), {"max_lora_rank": 8}, "raise engine.vllm.max_lora_rank"),
    ],
)
async def test_an_adapter_without_room_is_refused_before_vllm_starts(
    model: Path, tmp_path: Path, rank: int, targets: tuple[str, ...], options: dict[str, int],
    says: str,
) -> None:  # fmt: skip
    folder = make_adapter(tmp_path / "large", model, rank=rank, target_modules=targets)
    with pytest.raises(ConfigurationError, match=says):
        await Adapted(vllm_engine(model, options=options), folder).start()


async def test_an_adapter_that_vllm_cannot_apply_is_one_clear_error(
    model: Path, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    """Its weights are gone between the look at their header and the load."""
    engine = vllm_engine(model)
    folder = make_adapter(tmp_path / "gone", model)
    engine.hold_adapters({"gone": read_adapter(folder)})
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"cannot apply it.*merge_and_unload"):
        await engine.start()
