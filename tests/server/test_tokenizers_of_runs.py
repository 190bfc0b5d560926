"""No run's tokenizer is changed, refused or taken from it by what others register."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from teacher_proto import AsyncTeacherClient
from teacher_proto.errors import (
    ContractMismatchError,
    InvalidRequestError,
    OverloadedError,
    TeacherUnavailableError,
)
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import Level, ScoreReply, SpecialRole
from tokenizers import Tokenizer

from teacher_server.refusals.errors import tokenizers_full
from teacher_server.tokenizers.pairs import StudentTokenizers
from teacher_server.tokenizers.store import TokenizerStore
from tests.server.crossed import TEXT, changed, request, upload
from tests.server.running import LONG, Running, eventually, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_server(
    teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """A server without credentials that keeps its tokenizers in a folder."""
    folder = tmp_path_factory.mktemp("tokenizers")
    with pytest.MonkeyPatch.context() as patch:
        settings = {"folder": str(folder)}
        async with running(
            {"default": teacher_dir}, patch, tokenizers=settings, engine={"deterministic": True}
        ) as server:
            yield server


@pytest_asyncio.fixture(loop_scope="module")
async def empty(open_server: Running) -> AsyncIterator[Running]:
    """The same with nothing registered before or after."""
    await drop_all(open_server)
    yield open_server
    await drop_all(open_server)


async def drop_all(server: Running) -> None:
    for one in (await server.http.get("/v1/tokenizers")).json()["tokenizers"]:
        named = {name: one[name] for name in ("run", "tokenizer_hash")}
        assert (await server.http.delete("/v1/tokenizers", params=named)).json()["dropped"]


def plain_decoder(document: dict[str, Any]) -> None:
    """Ids of any text stay the same; what they are decoded to does not."""
    document["decoder"] = {"type": "Replace", "pattern": {"String": "e"}, "content": "X"}


def unflagged(document: dict[str, Any]) -> None:
    for token in document["added_tokens"]:
        token["special"] = False


def also_flagged(document: dict[str, Any]) -> None:
    """An ordinary token of the vocabulary becomes a special one."""
    text, number = max(document["model"]["vocab"].items(), key=lambda one: one[1])
    like = document["added_tokens"][0]
    document["added_tokens"].append({**like, "id": number, "content": text, "special": True})


def an_ordinary_token(document: dict[str, Any]) -> None:
    also_flagged(document)
    document["added_tokens"][-1]["special"] = False


def name_extra(number: int) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        size = len(document["model"]["vocab"])
        like = document["added_tokens"][0]
        document["added_tokens"].append({**like, "id": size, "content": f"<extra {number}>"})

    return change


def rows(reply: ScoreReply) -> Any:
    support = reply.results[0].rows.support
    assert support is not None
    return support


async def texts(server: Running, run: str, hash_: str) -> Any:
    body = {
        "run": run,
        "prompt": {"messages": [{"role": "user", "content": "Hi"}]},
        "continuations": [{"text": TEXT}],
        "top_k": 4,
        "temperature": 1.0,
        "tokenizer_hash": hash_,
    }
    answer = await server.http.post("/v1/score", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


@pytest.mark.parametrize(
    ("theirs", "others"),
    [
        (None, plain_decoder),
        (None, unflagged),
        (an_ordinary_token, also_flagged),
        (also_flagged, an_ordinary_token),
    ],
)
async def test_a_first_registrant_changes_nothing_of_another_run(
    empty: Running, student_file: bytes, student: Tokenizer, theirs: Any, others: Any
) -> None:
    """Files of one fingerprint that differ in what is not part of it: whoever comes first,
    the owner's file is accepted, and its text is scored as if nobody else were there."""
    own = changed(student_file, theirs or (lambda document: None))
    hostile = changed(student_file, others)
    assert tokenizer_hash(own) == tokenizer_hash(hostile)
    tokens = student.encode(TEXT).ids
    await empty.client.register_tokenizer(upload(own, run="alone"), timeout=LONG)
    expected = await empty.score(request(empty, own, tokens, run="alone"))
    shown = await texts(empty, "alone", tokenizer_hash(own))
    await drop_all(empty)
    try:
        await empty.client.register_tokenizer(upload(hostile, run="hostile"), timeout=LONG)
        registered = True
    except InvalidRequestError:
        registered = False
    assert registered or others is unflagged or others is plain_decoder
    levels = await empty.client.register_tokenizer(upload(own, run="owner"), timeout=LONG)
    assert levels == {"default": Level.CROSS}
    if registered:  # and again after the owner
        await empty.client.register_tokenizer(upload(hostile, run="late"), timeout=LONG)
    found = await empty.score(request(empty, own, tokens, run="owner"))
    np.testing.assert_array_equal(rows(found).ids, rows(expected).ids)
    np.testing.assert_array_equal(rows(found).log_probs, rows(expected).log_probs)
    assert await texts(empty, "owner", tokenizer_hash(own)) == shown


async def test_a_run_uses_only_what_it_registered(
    empty: Running, student_file: bytes, student: Tokenizer
) -> None:
    await empty.client.register_tokenizer(upload(student_file, run="trainer"), timeout=LONG)
    tokens = student.encode(TEXT).ids
    with pytest.raises(ContractMismatchError) as found:
        await empty.score(request(empty, student_file, tokens, run="other"))
    assert found.value.reason == "UNKNOWN_TOKENIZER"
    assert "register the tokenizer for this run" in found.value.fix
    # Over HTTP a request that names no run is of the run `http`, when it registers and after.
    body = {
        "prompt": {"text": "Hi"},
        "continuations": [{"text": " you"}],
        "top_k": 2,
        "temperature": 1.0,
        "tokenizer_hash": tokenizer_hash(student_file),
    }
    unknown = await empty.http.post("/v1/score", json=body)
    assert unknown.json()["error"]["reason"] == "UNKNOWN_TOKENIZER"
    assert (await empty.http.post("/v1/score", json=body | {"run": "trainer"})).status_code == 200
    assert (await empty.http.post("/v1/tokenizers", content=student_file)).status_code == 200
    assert (await empty.http.post("/v1/score", json=body)).status_code == 200
    runs = [one["run"] for one in (await empty.http.get("/v1/tokenizers")).json()["tokenizers"]]
    assert runs == ["http", "trainer"]


async def test_any_number_of_runs_has_roles_of_its_own(
    empty: Running, student_file: bytes, student: Tokenizer
) -> None:
    """More runs than there once was room for; the last one is neither refused nor anybody
    else's."""
    end, text_end = student.token_to_id("<|im_end|>"), student.token_to_id("<|endoftext|>")
    others = {end: SpecialRole.OTHER, text_end: SpecialRole.TURN_END}
    for number in range(65):
        mine = upload(student_file, run=f"run-{number}", special_tokens=others)
        await empty.client.register_tokenizer(mine, timeout=LONG)
    await empty.client.register_tokenizer(upload(student_file, run="owner"), timeout=LONG)
    found = (await empty.http.get("/v1/tokenizers")).json()
    assert found["total"] == 66
    assert len({one["content"] for one in found["tokenizers"]}) == 2


async def test_tables_on_disk_go_with_the_registrations(
    empty: Running, student_file: bytes, student: Tokenizer
) -> None:
    """A run that registers one tokenizer again and again with other roles fills no disk."""
    tables = empty.server._config.tokenizers.folder / "tables"  # type: ignore[operator]
    end, file = student.token_to_id("<|im_end|>"), changed(student_file, name_extra(42))
    for role in (SpecialRole.TURN_END, SpecialRole.END_OF_TEXT, SpecialRole.OTHER):
        mine = upload(file, special_tokens={end: role})
        await empty.client.register_tokenizer(mine, timeout=LONG)
        (one,) = tables.iterdir()
        assert len(list(one.iterdir())) == 1
    await empty.client.register_tokenizer(upload(file, run="other"), timeout=LONG)
    assert len(list(tables.iterdir())) == 2
    await drop_all(empty)
    assert list(tables.iterdir()) == []


async def test_tables_of_no_registration_are_not_left_behind(
    empty: Running, student_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = empty.server._config.tokenizers.folder / "tables"  # type: ignore[operator]
    built: list[Path] = []

    def put(self: TokenizerStore, *given: Any) -> Any:
        built.extend(tables.iterdir())
        raise tokenizers_full(1.0)

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerStore, "put", put)
        file, address = changed(student_file, name_extra(44)), empty.server.grpc_address
        async with AsyncTeacherClient(address, run="run", max_attempts=1) as client:
            with pytest.raises(OverloadedError):
                await client.register_tokenizer(upload(file), timeout=LONG)
    assert len(built) == 1
    await eventually(lambda: list(tables.iterdir()) == [])


async def test_servers_that_share_a_folder_keep_each_other_s_tables(
    empty: Running, student_file: bytes, student: Tokenizer
) -> None:
    settings = empty.server._config.tokenizers
    teachers = list(empty.server.lifecycle.served.teachers)
    end = student.token_to_id("<|im_end|>")
    other = StudentTokenizers(settings, teachers)
    try:
        theirs = changed(student_file, name_extra(43))
        await other.register(upload(theirs, run="theirs"), "theirs", teachers)
        for role in (SpecialRole.TURN_END, SpecialRole.OTHER):  # the first one's tables go
            mine = upload(theirs, special_tokens={end: role})
            await empty.client.register_tokenizer(mine, timeout=LONG)
        await drop_all(empty)
        tables = settings.folder / "tables"  # type: ignore[operator]
        (one,) = tables.iterdir()
        assert len(list(one.iterdir())) == 1
        other.drop("theirs", tokenizer_hash(theirs))
        assert list(tables.iterdir()) == []
    finally:
        await other.close()


async def test_registrations_under_many_names_evict_nobody_active(
    teacher_dir: Path, student_file: bytes, student: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_count": 4}
    tokens = student.encode(TEXT).ids
    async with running({"default": teacher_dir}, monkeypatch, tokenizers=settings) as server:
        await server.client.register_tokenizer(upload(student_file), timeout=LONG)
        before = await server.score(request(server, student_file, tokens))
        refused: list[OverloadedError] = []
        for number in range(8):
            file = changed(student_file, name_extra(number))
            try:
                mine = upload(file, run=f"invented-{number}")
                await server.client.register_tokenizer(mine, timeout=LONG)
            except OverloadedError as error:
                refused.append(error)
        assert [error.reason for error in refused] == ["TOKENIZERS_FULL"] * 5
        assert all(error.retry_after is not None for error in refused)
        file = changed(student_file, name_extra(9))
        answer = await server.http.post("/v1/tokenizers", content=file)
        assert answer.status_code == 429
        assert answer.json()["error"]["reason"] == "TOKENIZERS_FULL"
        assert int(answer.headers["retry-after"]) > 0
        after = await server.score(request(server, student_file, tokens, request_id="after"))
        np.testing.assert_array_equal(rows(after).log_probs, rows(before).log_probs)


async def test_a_client_registers_again_in_the_middle_of_a_run(
    empty: Running, student_file: bytes, student: Tokenizer
) -> None:
    """What was dropped or evicted is registered again by the client's next request, once
    however many requests wait for it."""
    tokens = student.encode(TEXT).ids
    address = empty.server.grpc_address
    named = tokenizer_hash(student_file)
    async with AsyncTeacherClient(address, run="run") as client:
        await client.register_tokenizer(upload(student_file), timeout=LONG)
        before = await client.score(request(empty, student_file, tokens), timeout=LONG)
        assert await empty.client.drop_tokenizer(named, timeout=LONG)
        again = await asyncio.gather(
            *(
                client.score(
                    request(empty, student_file, tokens, request_id=f"again-{number}"),
                    timeout=LONG,
                )
                for number in range(4)
            )
        )
        for reply in again:
            np.testing.assert_array_equal(rows(reply).log_probs, rows(before).log_probs)
        # A request of another run needs a registration of its own.
        other = request(empty, student_file, tokens, run="other", request_id="other")
        await client.score(other, timeout=LONG)
        listed = (await empty.http.get("/v1/tokenizers")).json()["tokenizers"]
        assert [one["run"] for one in listed] == ["other", "run"]
        assert await client.drop_tokenizer(named, timeout=LONG)
        with pytest.raises(ContractMismatchError):  # it dropped it itself
            await client.score(request(empty, student_file, tokens, request_id="own"), timeout=LONG)


async def test_a_folder_that_cannot_be_written_refuses_and_serves_on(
    teacher_dir: Path,
    student_file: bytes,
    student: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"folder": str(tmp_path)}
    tokens = student.encode(TEXT).ids
    async with running({"default": teacher_dir}, monkeypatch, tokenizers=settings) as server:
        await server.client.register_tokenizer(upload(student_file), timeout=LONG)
        await server.score(request(server, student_file, tokens))
        # Even root cannot write into it.
        (tmp_path / "files").rename(tmp_path / "moved")
        (tmp_path / "files").write_bytes(b"")
        file = changed(student_file, name_extra(1))
        with pytest.raises(TeacherUnavailableError) as found:
            await server.client.register_tokenizer(upload(file), timeout=LONG)
        assert found.value.reason == "TOKENIZERS_FOLDER_FAILED"
        assert found.value.retry_after is not None
        answer = await server.http.post("/v1/tokenizers", content=file, params={"run": "run"})
        assert answer.status_code == 503
        assert answer.json()["error"]["reason"] == "TOKENIZERS_FOLDER_FAILED"
        assert str(tmp_path) not in answer.text
        await server.score(request(server, student_file, tokens, request_id="after"))
        (tmp_path / "files").unlink()
        (tmp_path / "moved").rename(tmp_path / "files")
        await server.client.register_tokenizer(upload(file), timeout=LONG)


@pytest.mark.parametrize(
    ("verb", "query", "where"),
    [
        ("DELETE", {}, "tokenizer_hash"),
        ("DELETE", {"tokenizer_hash": ""}, "tokenizer_hash"),
        ("DELETE", {"tokenizer_hash": "a", "run": "a\nb"}, "run"),
        ("DELETE", {"tokenizer_hash": "a", "run": "a" * 300}, "run"),
        ("GET", {"run": "a\x00"}, "run"),
        ("GET", {"run": "a" * 300}, "run"),
    ],
)
async def test_bad_input_of_the_doors(
    empty: Running, verb: str, query: dict[str, str], where: str
) -> None:
    answer = await empty.http.request(verb, "/v1/tokenizers", params=query)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["where"] == where
    run, named = query.get("run", "run"), query.get("tokenizer_hash", "")
    async with AsyncTeacherClient(empty.server.grpc_address, run=run, max_attempts=1) as client:
        calls = {"GET": client.list_tokenizers, "DELETE": partial(client.drop_tokenizer, named)}
        with pytest.raises(InvalidRequestError) as found:
            await calls[verb](timeout=LONG)
    assert found.value.where == where


async def test_what_is_not_there_is_not_dropped(empty: Running) -> None:
    for hash_ in ("v2-" + "0" * 64, "../../etc/passwd", "\u00e9" * 1000):
        assert await empty.client.drop_tokenizer(hash_, timeout=LONG) is False
        answer: httpx.Response = await empty.http.delete(
            "/v1/tokenizers", params={"tokenizer_hash": hash_}
        )
        assert answer.json() == {"dropped": False}


async def test_a_request_ends_with_the_tokenizer_that_it_began_with(
    empty: Running, student_file: bytes
) -> None:
    await empty.client.register_tokenizer(upload(student_file), timeout=LONG)
    hash_ = tokenizer_hash(student_file)
    expected = await texts(empty, "run", hash_)
    engine = empty.engines["default"]
    engine.hold()
    scoring = asyncio.create_task(texts(empty, "run", hash_))
    await engine.has_jobs(1)
    assert await empty.client.drop_tokenizer(hash_, timeout=LONG)
    engine.gate.set()
    assert await scoring == expected


async def test_a_registration_is_work_that_a_server_ends_with(
    empty: Running, student_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    register: Any = StudentTokenizers.register
    seen: list[int] = []

    async def watched(self: StudentTokenizers, *given: Any, **named: Any) -> Any:
        seen.append(empty.server.lifecycle.active)
        return await register(self, *given, **named)

    monkeypatch.setattr(StudentTokenizers, "register", watched)
    await empty.client.register_tokenizer(upload(student_file), timeout=LONG)
    assert seen == [1]
    assert empty.server.lifecycle.active == 0
