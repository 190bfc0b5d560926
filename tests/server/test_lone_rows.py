"""Rows behind single tokens: asked for once, whoever needs them, and the same for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import PositionClass
from tokenizers import Tokenizer

from teacher_server.engines.base import Rows
from teacher_server.realign.carry import Realigner
from teacher_server.realign.leaks import LoneRows
from teacher_server.realign.tables import PairTables, build_static
from teacher_server.realign.vocabulary import read_vocabulary
from teacher_server.realigned import learn_lone, lone_prompt
from tests.server.crossed import TEXT, block, file_of, given, request, upload
from tests.server.running import LONG, ids, running

pytestmark = pytest.mark.asyncio(loop_scope="module")
OTHER = "A teacher that writes def loss(x): return 9 * x; nothing else is judged."


async def test_each_is_asked_for_once_and_counted(
    teacher_dir: Path, student_file: bytes, student: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = student.encode(TEXT).ids
    async with running({"default": teacher_dir}, monkeypatch) as server:
        await server.client.register_tokenizer(upload(student_file), timeout=LONG)
        first = await server.score(request(server, student_file, tokens))
        second = await server.score(request(server, student_file, tokens, request_id="second"))
        own, lone, again = server.engines["default"].jobs
        assert len(own.sequences[0].token_ids) == len(again.sequences[0].token_ids)
        vocabulary = read_vocabulary(file_of(teacher_dir))
        np.testing.assert_array_equal(lone.prompt_ids, lone_prompt(vocabulary))
        assert all(s.positions.tolist() == [1] for s in lone.sequences)
        told = (first.timing.computed_tokens, second.timing.computed_tokens)
        assert told[0] - told[1] >= len(lone.sequences)
        for part in ("top_ids", "top_log_probs", "valid_counts", "sampled_log_probs"):
            mine, theirs = (given(getattr(one.results[0], part)) for one in (first, second))
            np.testing.assert_allclose(mine, theirs, atol=1e-5)
        metrics = (await server.http.get("/metrics")).text
        label = f'teacher="default",tokenizer="{tokenizer_hash(student_file)[:12]}"'
        count = float(len(lone.sequences))
        assert f"lsm_teacher_realign_lone_rows_total{{{label}}} {count}" in metrics
        # Another temperature is another distribution.
        await server.score(request(server, student_file, tokens, temperature=2.0))
        assert len(server.engines["default"].jobs) == 5


async def test_what_others_asked_for_changes_nothing(
    teacher_dir: Path, student_file: bytes, student: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = student.encode(TEXT).ids
    found = []
    for before in ([], student.encode(OTHER).ids):
        async with running({"default": teacher_dir}, monkeypatch) as server:
            await server.client.register_tokenizer(upload(student_file), timeout=LONG)
            if before:
                await server.score(request(server, student_file, before, request_id="other"))
            found.append((await server.score(request(server, student_file, tokens))).results[0])
    np.testing.assert_array_equal(found[0].top_ids, found[1].top_ids)
    np.testing.assert_allclose(given(found[0].top_log_probs), found[1].top_log_probs, atol=1e-5)
    blocks = [block(one) for one in found]
    np.testing.assert_array_equal(blocks[0].position_class, blocks[1].position_class)
    np.testing.assert_allclose(blocks[0].open_mass, blocks[1].open_mass, atol=1e-5)


async def test_without_them_more_is_open(
    teacher_dir: Path, student_file: bytes, student: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = student.encode(TEXT).ids
    found = []
    for asks in (True, False):
        settings = {"tokenizers": {"lone_rows": asks}}
        async with running({"default": teacher_dir}, monkeypatch, **settings) as server:
            await server.client.register_tokenizer(upload(student_file), timeout=LONG)
            found.append(
                block((await server.score(request(server, student_file, tokens))).results[0])
            )
            assert len(server.engines["default"].jobs) == 1 + asks
    masked = [(one.position_class == PositionClass.MASKED).mean() for one in found]
    assert masked[0] <= masked[1]
    assert found[0].open_mass.sum() != pytest.approx(found[1].open_mass.sum(), rel=1e-3)


async def test_a_row_that_is_not_finite_leaves_its_token_open(
    teacher_dir: Path, student_file: bytes
) -> None:
    vocabularies = read_vocabulary(student_file), read_vocabulary(file_of(teacher_dir))
    realigner = Realigner(PairTables(*vocabularies, build_static(*vocabularies)))
    lone = LoneRows(realigner.tables)
    first, second = np.flatnonzero(realigner.tables.extended)[:2].tolist()
    special = next(iter(vocabularies[1].specials))
    sure = Rows(top_ids=ids(special)[None], top_log_probs=np.zeros((1, 1), np.float32))
    learn_lone(np.array([first, second]), (Rows(finite=False), sure), realigner, lone)
    assert lone.known[[first, second]].all()
    assert lone.leak[first] == 1.0
    assert lone.leak[second] == 0.0
