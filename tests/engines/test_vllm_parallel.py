"""One model over several of vLLM's processes, as far as two cores can run it."""

from __future__ import annotations

import asyncio

import psutil
import pytest

from tests.engines.conformance import Subject, assert_equals_reference, make_job, running
from tests.engines.vllm_subjects import vllm_engine
from tests.support.models import make_tiny_model
from tests.support.reference import plain_logits

pytestmark = pytest.mark.vllm

# Not a multiple of 2 x 64, so that the last rank's part of the vocabulary is padded.
SIZE = 323


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    model = make_tiny_model(
        tmp_path_factory.mktemp("models") / "wide",
        vocabulary_size=SIZE,
        num_attention_heads=2,
        num_key_value_heads=1,
    )

    def factory(**changes: object) -> object:
        return vllm_engine(model, **changes)

    return Subject(factory, plain_logits(model), SIZE, accuracy=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"tensor_parallel_size": 2},
        {"data_parallel_size": 2},
    ],
    ids=["tensor", "data"],
)
async def test_two_ranks_give_what_one_gives(subject: Subject, options: dict[str, int]) -> None:
    engine = subject.factory(max_batch_tokens=64, options=options)
    jobs = [
        make_job(1, SIZE, prompt=70, lengths=(30, 9, 64)),
        make_job(2, SIZE, prompt=3, lengths=(100,), top_k=SIZE),
        make_job(3, SIZE, prompt=33, lengths=(5,) * 7, temperature=0.7),
        make_job(4, SIZE, prompt=12, lengths=(20, 20), top_k=0),
    ]
    async with running(engine):
        commands = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
        assert sum("Worker" in command for command in commands) >= 2, commands
        results = await asyncio.gather(*(engine.score(job) for job in jobs))
        for job, result in zip(jobs, results, strict=True):
            assert_equals_reference(subject, job, result)
        again = await engine.score(jobs[0])
        assert_equals_reference(subject, jobs[0], again)
