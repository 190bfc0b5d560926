"""A panic of native code is an answer like any other failure, and the server goes on."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import EngineError
from teacher_proto.types import TextPrompt

from teacher_server.engines.torch.scorer import Scorer
from teacher_server.lanes import guarded
from teacher_server.scoring.replay import Key, ReplayWindow
from tests.server.running import LONG, running

SECRET = "do not tell"
KEY: Key = ("run", "id", b"digest")


class PanicException(BaseException):
    """What PyO3 makes of a Rust panic, where a test has no real one."""


@pytest.fixture(scope="module")
def panicking_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose tokenizer loads and makes the tokenizers library panic on any text."""
    directory = tmp_path_factory.mktemp("panicking") / "model"
    shutil.copytree(tiny_model_dir, directory)
    path = directory / "tokenizer.json"
    document = json.loads(path.read_text())
    document["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [document["pre_tokenizer"], {"type": "FixedLength", "length": 0}],
    }
    path.write_text(json.dumps(document))
    return directory


async def test_a_panic_of_the_tokenizer_is_internal_on_both_wires(
    panicking_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running({"default": panicking_dir}, monkeypatch) as server:
        request = replace(server.request(), prompt=TextPrompt(SECRET))
        for _ in range(2):  # a retry of the same id is not left waiting for the first one
            with pytest.raises(EngineError) as raised:
                await server.score(request)
            assert raised.value.reason == "INTERNAL"
            assert "chunk size" not in str(raised.value)
        body = {
            "prompt": {"text": SECRET},
            "continuations": [{"token_ids": [4, 5]}],
            "top_k": 2,
            "temperature": 1.0,
        }
        answer = await server.http.post("/v1/score", json=body)
        assert answer.status_code == 500
        assert answer.json()["error"]["reason"] == "INTERNAL"
        body["prompt"], body["continuations"] = {"token_ids": [1]}, [{"text": SECRET}]
        answer = await server.http.post("/v1/score", json=body)
        assert answer.json()["error"]["reason"] == "INTERNAL"
        assert len((await server.score(server.request())).results) == 2
        server.server.stop()
        async with asyncio.timeout(LONG):
            assert await server.task == 0
    assert SECRET not in caplog.text


async def test_a_failure_that_is_no_exception_settles_the_replay() -> None:
    replay = ReplayWindow(max_entries=2, max_bytes=100, max_seconds=10.0)

    async def panic(deadline: object) -> bytes:
        raise PanicException(SECRET)

    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^PanicException was raised$"):
            await replay.answer(KEY, math.inf, panic)
    await replay.close()


@pytest.mark.parametrize("ending", [asyncio.CancelledError, KeyboardInterrupt, SystemExit])
def test_what_ends_a_task_or_the_program_passes_through(ending: type[BaseException]) -> None:
    with pytest.raises(ending):
        guarded(_raising(ending()))()


def _raising(error: BaseException) -> Any:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize("error", [StopIteration(), PanicException(SECRET)])
async def test_a_thread_hands_back_what_a_future_cannot_carry(error: BaseException) -> None:
    with pytest.raises(RuntimeError, match=type(error).__name__):
        await asyncio.to_thread(guarded(_raising(error)))


async def test_an_engine_goes_on_after_a_panic(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running({"default": tiny_model_dir}, monkeypatch) as server:
        score = Scorer.run
        monkeypatch.setattr(Scorer, "run", lambda *_: _raising(PanicException(SECRET))())
        with pytest.raises(EngineError) as raised:
            await server.score(server.request())
        assert SECRET not in str(raised.value)
        monkeypatch.setattr(Scorer, "run", score)
        assert len((await server.score(server.request())).results) == 2
