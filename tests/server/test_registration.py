"""Tokenizers of students: taken, kept, refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto.errors import ContractMismatchError, InvalidRequestError
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import (
    Level,
    PositionClass,
    ScoreReply,
    SpecialRole,
)
from tokenizers import Tokenizer

from tests.server.crossed import (
    TEXT,
    block,
    changed,
    extra_token,
    given,
    request,
    upload,
)
from tests.server.running import LONG, Running, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_tokenizer_registers_over_http(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    role = f"{student.token_to_id('<|im_end|>')}:TURN_END"
    answer = await crossed.http.post(
        "/v1/tokenizers", content=student_file, params={"role": role, "run": "by-http"}
    )
    found = answer.json()
    difference = found.pop("differences")["default"]
    assert difference.startswith("they differ in the vocabulary (")
    assert "; in the merges (number 1: " in difference
    assert found == {
        "tokenizer_hash": tokenizer_hash(student_file),
        "levels": {"default": "CROSS"},
    }
    for content, params in ((b"{", {}), (student_file, {"role": "x:TURN_END"})):
        bad = await crossed.http.post("/v1/tokenizers", content=content, params=params)
        assert bad.status_code == 400
        assert bad.json()["error"]["fix"]


async def test_registered_tokenizers_survive_a_restart(
    teacher_dir: Path,
    student_file: bytes,
    student: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"tokenizers": {"folder": str(tmp_path / "tokenizers"), "max_count": 1}}
    tokens = student.encode(TEXT).ids
    replies: list[ScoreReply] = []
    for first in (True, False):
        async with running({"default": teacher_dir}, monkeypatch, **settings) as server:
            if first:
                with pytest.raises(ContractMismatchError) as unknown:
                    await server.score(request(server, student_file, tokens))
                assert unknown.value.reason == "UNKNOWN_TOKENIZER"
                for _ in range(2):
                    await server.client.register_tokenizer(upload(student_file), timeout=LONG)
            else:
                monkeypatch.setattr("teacher_server.realign.pair.cache.build_static", None)
            replies.append(await server.score(request(server, student_file, tokens)))
    np.testing.assert_array_equal(
        replies[0].results[0].rows.support.ids, replies[1].results[0].rows.support.ids
    )
    monkeypatch.undo()
    (stored,) = (tmp_path / "tokenizers" / "files").iterdir()
    stored.write_bytes(student_file[:1000])
    async with running({"default": teacher_dir}, monkeypatch, **settings) as server:
        with pytest.raises(ContractMismatchError) as damaged:
            await server.score(request(server, student_file, tokens))
        assert damaged.value.reason == "UNKNOWN_TOKENIZER"
        await server.client.register_tokenizer(upload(student_file), timeout=LONG)
        await server.score(request(server, student_file, tokens))
        other = changed(student_file, extra_token)
        await server.client.register_tokenizer(upload(other), timeout=LONG)
        with pytest.raises(ContractMismatchError):
            await server.score(request(server, student_file, tokens, request_id="gone"))
        await server.score(request(server, other, tokens, request_id="other"))
    assert not stored.exists()
    assert len(list((tmp_path / "tokenizers" / "files").iterdir())) == 1


def _two_ids(document: dict[str, Any]) -> None:
    document["added_tokens"][0]["content"] = list(document["model"]["vocab"])[5]


def _negative(document: dict[str, Any]) -> None:
    document["added_tokens"][0]["id"] = -7


def _nameless(document: dict[str, Any]) -> None:
    document["added_tokens"].append({**document["added_tokens"][0], "id": 9999, "content": ""})


def _unigram(document: dict[str, Any]) -> None:
    document["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0], ["b", -2.0]]}


def _bad_merge(document: dict[str, Any]) -> None:
    document["model"]["merges"].append(["nowhere", "tobefound"])


def _enormous(document: dict[str, Any]) -> None:
    document["added_tokens"][0]["id"] = 2**31 - 1


@pytest.mark.parametrize(
    "change", [_two_ids, _negative, _nameless, _unigram, _bad_merge, _enormous]
)
async def test_files_that_cannot_be_used_are_refused(
    crossed: Running, student_file: bytes, change: Any
) -> None:
    with pytest.raises(InvalidRequestError) as found:
        await crossed.client.register_tokenizer(upload(changed(student_file, change)), timeout=LONG)
    assert found.value.what
    assert found.value.fix
    info = (await crossed.client.get_teacher(timeout=LONG)).teacher("default")
    assert len(info.tokenizers) == 2


async def test_uploads_that_contradict_themselves_are_refused(
    crossed: Running, student_file: bytes
) -> None:
    for wrong in (
        upload(student_file, tokenizer_hash="0" * 64),
        upload(student_file, special_tokens={300: SpecialRole.TURN_END}),
        replace(upload(student_file), file=b"{"),
        replace(upload(student_file), file=b"[" * 100_000),
    ):
        with pytest.raises(InvalidRequestError):
            await crossed.client.register_tokenizer(wrong, timeout=LONG)


async def test_files_of_one_fingerprint_may_flag_other_tokens_as_special(
    teacher_dir: Path, student_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like <mask> of Gemma, which is special only where transformers has loaded the file."""

    def masked(special: bool) -> bytes:
        def add(document: dict[str, Any]) -> None:
            word, number = max(document["model"]["vocab"].items(), key=lambda one: one[1])
            like = document["added_tokens"][0]
            document["added_tokens"].append(
                {**like, "id": number, "content": word, "special": special}
            )

        return changed(student_file, add)

    plain, special = masked(False), masked(True)
    assert tokenizer_hash(plain) == tokenizer_hash(special)
    async with running({"default": teacher_dir}, monkeypatch) as server:
        for run, file in (("first", plain), ("second", special), ("first", special)):
            levels = await server.client.register_tokenizer(upload(file, run=run), timeout=LONG)
            assert levels == {"default": Level.CROSS}


async def test_a_file_over_the_limit_is_refused(
    teacher_dir: Path, student_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"max_tokenizer_bytes": len(student_file) - 1}
    async with running({"default": teacher_dir}, monkeypatch, limits=limits) as server:
        with pytest.raises(InvalidRequestError, match="max_tokenizer_bytes"):
            await server.client.register_tokenizer(upload(student_file), timeout=LONG)
        answer = await server.http.post("/v1/tokenizers", content=student_file)
        assert answer.status_code == 413
        assert answer.json()["error"]["reason"] == "REQUEST_TOO_LARGE"


async def test_roles_are_those_of_the_run_that_gave_them(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    """Where a run says that another token ends its turns, its rows put the end there."""
    end, text_end = student.token_to_id("<|im_end|>"), student.token_to_id("<|endoftext|>")
    roles = {end: SpecialRole.OTHER, text_end: SpecialRole.TURN_END}
    other = upload(student_file, run="other", special_tokens=roles)
    await crossed.client.register_tokenizer(other, timeout=LONG)
    tokens = student.encode(" the day").ids
    for run, wanted in (("run", end), ("other", text_end)):
        asked = request(crossed, student_file, [*tokens, wanted], run=run, request_id=f"role-{run}")
        scores = (await crossed.score(asked)).results[0]
        assert block(scores).position_class[-1] == PositionClass.SPECIAL
        assert given(scores.rows.sampled).valid[-1]
