"""The transformers engine with LoRA adapters: each is the model that PEFT merges.

The reference is the forward of base and adapter merged in float32.
"""

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
from teacher_server.engines.torch.transformers import TransformersEngine
from tests.engines.adapted import Adapted
from tests.engines.conformance import (
    EngineConformance,
    Subject,
    assert_equals_reference,
    make_job,
    running,
)
from tests.support.adapters import make_adapter, merged
from tests.support.models import make_tiny_model
from tests.support.reference import plain_logits

SIZE = 320


@pytest.fixture(scope="module")
def adapters(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return (
        make_adapter(folder / "math.v1", tiny_model_dir, seed=1),
        make_adapter(
            folder / "code", tiny_model_dir, seed=2, rank=8, target_modules=("q_proj", "up_proj")
        ),
    )


@pytest.fixture(scope="module")
def subject(tiny_model_dir: Path, adapters: tuple[Path, Path]) -> Subject:
    def factory(**changes: bool) -> Engine:
        engine = TransformersEngine(str(tiny_model_dir), device="cpu", **changes)
        return Adapted(engine, *adapters)

    return Subject(factory, plain_logits(merged(tiny_model_dir, adapters[0])), SIZE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(subject: Subject) -> AsyncIterator[Engine]:
    async with running(subject.factory()) as started:
        yield started


class TestTransformersAdapter(EngineConformance):
    pass


@pytest.mark.asyncio(loop_scope="module")
async def test_base_and_adapters_take_turns(
    engine: Adapted, tiny_model_dir: Path, adapters: tuple[Path, Path]
) -> None:
    """The same jobs for three models at once, in any order."""
    references = {"": Subject(lambda: engine, plain_logits(tiny_model_dir), SIZE)}
    for path in adapters:
        logits = plain_logits(merged(tiny_model_dir, path))
        references[path.name] = Subject(lambda: engine, logits, SIZE)
    jobs = [
        replace(make_job(seed, SIZE, prompt=40, lengths=(12, 7)), adapter=name)
        for seed in range(3)
        for name in references
    ]
    generator = np.random.default_rng(0)
    for _ in range(2):
        order = [jobs[index] for index in generator.permutation(len(jobs))]
        results = await asyncio.gather(*(engine.whole.score(job) for job in order))
        for job, result in zip(order, results, strict=True):
            assert_equals_reference(references[job.adapter], job, result)
            others = [references[name] for name in references if name != job.adapter]
            for other in others:
                with pytest.raises(AssertionError):
                    assert_equals_reference(other, job, result)


async def test_an_adapter_of_another_base_ends_the_start(
    adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    engine = TransformersEngine(str(make_tiny_model(tmp_path / "wide", hidden_size=96)))
    engine.hold_adapters({"math": read_adapter(adapters[0])})
    with pytest.raises(ConfigurationError, match="which in the base is"):
        await engine.start()
    await engine.close()


async def test_tensors_that_the_configuration_leaves_out_end_the_start(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "narrowed", tiny_model_dir)
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"q_proj",', "").replace('"q_proj"', '"up_proj"'))
    engine = TransformersEngine(str(tiny_model_dir))
    engine.hold_adapters({"math": read_adapter(folder)})
    with pytest.raises(ConfigurationError, match="q_proj"):
        await engine.start()
    await engine.close()
