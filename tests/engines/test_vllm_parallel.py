"""One model over several of vLLM's processes, as far as two cores can run it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.engines.adapted import Adapted
from tests.engines.conformance import Subject, assert_equals_reference, make_job, running
from tests.engines.vllm_subjects import vllm_engine
from tests.support.adapters import make_adapter, merged
from tests.support.models import make_tiny_model
from tests.support.reference import plain_logits

pytestmark = pytest.mark.vllm

# Not a multiple of 2 x 64, so that the last rank's part of the vocabulary is padded.
SIZE = 323
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(
        tmp_path_factory.mktemp("models") / "wide",
        vocabulary_size=SIZE,
        num_attention_heads=2,
        num_key_value_heads=1,
    )


@pytest.mark.parametrize("kind", ["tensor", "pipeline", "data"])
async def test_two_ranks_give_what_one_gives(model: Path, tmp_path: Path, kind: str) -> None:
    """The base and an adapter of it, together."""
    folder = make_adapter(tmp_path / "math", model)
    options = {f"{kind}_parallel_size": 2}
    adapted = Adapted(vllm_engine(model, max_batch_tokens=64, options=options), folder)
    references = {
        "": Subject(lambda: adapted, plain_logits(model), SIZE, TOLERANCE),
        "math": Subject(lambda: adapted, plain_logits(merged(model, folder)), SIZE, TOLERANCE),
    }
    jobs = [
        make_job(1, SIZE, prompt=70, lengths=(30, 9, 64)),
        make_job(2, SIZE, prompt=3, lengths=(100,), top_k=SIZE),
        make_job(3, SIZE, prompt=33, lengths=(5,) * 7, temperature=0.7),
        make_job(4, SIZE, prompt=12, lengths=(20, 20), top_k=0),
    ]
    jobs += [replace(job, adapter="math") for job in jobs]
    async with running(adapted):
        commands = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
        assert sum("Worker" in command for command in commands) >= 2, commands
        results = await asyncio.gather(*(adapted.whole.score(job) for job in jobs))
        for job, result in zip(jobs, results, strict=True):
            assert_equals_reference(references[job.adapter], job, result)
        again = await adapted.whole.score(jobs[0])
        assert_equals_reference(references[""], jobs[0], again)
