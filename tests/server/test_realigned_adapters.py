"""LoRA adapters as teachers of a student with another tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import Level, PositionClass
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.server.crossed import TEXT, block, given, request, upload
from tests.server.running import LONG, running
from tests.support.adapters import make_adapter, merged
from tests.support.models import save_model

ROUNDS = 2


@pytest.fixture(scope="module")
def models(teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, an adapter of it, and the model that the two make, as three teachers."""
    folder = tmp_path_factory.mktemp("adapted")
    adapter = make_adapter(folder / "math", teacher_dir)
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    whole = save_model(merged(teacher_dir, adapter), folder / "whole", tokenizer)
    return {"plain": teacher_dir, "math": adapter, "whole": whole}


async def test_a_foreign_rollout_has_the_adapter_s_rows(
    models: dict[str, Path], student_file: bytes, student: Tokenizer, monkeypatch: Any
) -> None:
    """Those of the merged model as a teacher, rows behind single tokens and extra rounds
    included, and not the base's."""
    settings = {"extra_rounds": ROUNDS, "extra_least_open": 0.02}
    async with running(models, monkeypatch, tokenizers=settings) as server:
        levels = await server.client.register_tokenizer(upload(student_file), timeout=LONG)
        assert levels == dict.fromkeys(models, Level.CROSS)
        tokens = student.encode(TEXT).ids
        found = {}
        for name in models:
            asked = request(server, student_file, tokens, teacher=name, request_id=name)
            reply = await server.score(asked)
            assert reply.identity == server.info.teacher(name).identity
            found[name] = reply.results[0]
        base, adapted = (
            [job for job in server.engines["plain"].jobs if job.adapter == name]
            for name in ("", "math")
        )
        extra_jobs = []
        for jobs in (base, adapted, server.engines["whole"].jobs):
            rollout, *others = jobs
            assert rollout.want_sampled
            # Rows behind single tokens have no prompt but the text's beginning.
            context_free = [len(job.prompt_ids) < len(rollout.prompt_ids) for job in others]
            assert context_free[0]
            extra = [job for job, alone in zip(others, context_free, strict=True) if not alone]
            assert len(extra) in range(1, ROUNDS + 1)
            extra_jobs.append(extra)
        own, whole, plain = (found[name] for name in ("math", "whole", "plain"))
        mine, theirs = block(own), block(whole)
        np.testing.assert_array_equal(mine.position_class, theirs.position_class)
        assert (mine.position_class != PositionClass.MASKED).mean() > 0.5
        np.testing.assert_array_equal(own.rows.support.ids, whole.rows.support.ids)
        np.testing.assert_allclose(
            own.rows.support.log_probs, given(whole.rows.support).log_probs, atol=2e-4
        )
        np.testing.assert_allclose(
            own.rows.sampled.values, given(whole.rows.sampled).values, atol=2e-4
        )
        np.testing.assert_allclose(mine.open_mass, theirs.open_mass, atol=1e-4)
        np.testing.assert_allclose(
            mine.chunk_log_likelihood, theirs.chunk_log_likelihood, atol=1e-3
        )
        likelihoods = mine.chunk_log_likelihood.sum(), block(plain).chunk_log_likelihood.sum()
        assert abs(likelihoods[0] - likelihoods[1]) > 1.0

        student_hash = tokenizer_hash(student_file)
        info = await server.client.get_teacher(timeout=LONG)
        for name in models:
            assert info.teacher(name).tokenizers == {
                info.teacher(name).identity.tokenizer_hash: Level.SAME,
                student_hash: Level.CROSS,
            }
        metrics = (await server.http.get("/metrics")).text
        rows = sum(len(job.spans) for job in extra_jobs[1])
        label = f'teacher="math",tokenizer="{student_hash[:12]}"'
        assert f"lsm_teacher_realign_extra_rows_total{{{label}}} {float(rows)}" in metrics
        masked = int((mine.position_class == PositionClass.MASKED).sum())
        label = f'position_class="MASKED",{label}'
        assert f"lsm_teacher_realigned_rows_total{{{label}}} {float(masked)}" in metrics
