"""What a student's process answers, however it arrives."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto.tokenizer_hash import tokenizer_hash

from teacher_server.frames import PREFIX, Frame, pack, parts, receive, texts_array, unpack
from teacher_server.workers import worker
from teacher_server.workers.inside.errors import WorkerError
from teacher_server.workers.inside.student import Student
from teacher_server.workers.worker import MAX_ANSWER_BYTES, PART_BYTES, Worker
from teacher_server.workers.worker import MAX_ANSWER_HEADER_BYTES as LONGEST

ANSWER = Frame("texts", {"n": 1}, {"a": np.arange(PART_BYTES // 4, dtype=np.int64)})


class Processes:
    """Forks nothing: a thread of the test answers on the socket."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self._answer = answer

    def fork(self, end: socket.socket, **_: Any) -> int:
        threading.Thread(target=self._run, args=(end.dup(),)).start()
        return os.getpid()

    def end(self, pid: int) -> str:
        return "unknown"

    def _run(self, end: socket.socket) -> None:
        with end:
            assert receive(end) is not None
            self._answer(end)


def asked(answer: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch) -> Frame:
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.001)
    processes: Any = Processes(answer)
    return Worker(processes, 0).ask(Frame("texts"), 60.0)


def test_an_answer_in_pieces_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(end: socket.socket) -> None:
        data = pack(ANSWER)
        for start in (*range(40), *range(40, len(data), 1 << 18)):
            end.sendall(data[start : start + 1] if start < 40 else data[start : start + (1 << 18)])
            threading.Event().wait(0.003)  # longer than the server looks at once

    found = asked(slowly, monkeypatch)
    assert found.header == ANSWER.header
    np.testing.assert_array_equal(found.arrays["a"], ANSWER.arrays["a"])


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "has ended"),
        (pack(ANSWER)[:-1], "has ended"),
        (PREFIX.pack(8, MAX_ANSWER_BYTES + 1), "gave an answer that is none"),
        (PREFIX.pack(LONGEST + 8, LONGEST + 8), "gave an answer that is none"),
        (PREFIX.pack(8, 8) + b"[1, 2, ]", "gave an answer that is none"),
        (pack(Frame("error", {"class": "SystemExit"})), "gave an answer that is none"),
        (pack(Frame("error", {"class": "memory"})), "took more memory than it may"),
    ],
)
def test_what_is_no_answer_ends_the_process(
    data: bytes, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WorkerError, match=what):
        asked(lambda end: end.sendall(data), monkeypatch)


def test_a_file_is_sent_as_it_is_and_not_copied() -> None:
    file = np.frombuffer(b"tokenizer", np.uint8)
    found = parts(Frame("open", {"tables": ""}, {"file": file}))
    assert any(np.shares_memory(np.frombuffer(part, np.uint8), file) for part in found if part)
    assert unpack(b"".join(found)).arrays["file"].tobytes() == b"tokenizer"


def test_a_file_is_parsed_once(
    other_tokenizer_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fingerprint, its sizes and components, its vocabulary and its texts are of one parse."""
    file = (other_tokenizer_model_dir / "tokenizer.json").read_bytes()
    parsed: list[int] = []
    loads = json.loads

    def counting(text: str | bytes, **how: Any) -> Any:
        parsed.append(len(text))
        return loads(text, **how)

    monkeypatch.setattr(json, "loads", counting)
    student = Student({})
    header = {"tables": "", "roles": {}}
    answer = student.answer(Frame("open", header, {"file": np.frombuffer(file, np.uint8)}))
    assert student.answer(Frame("encode", {}, texts_array(["hello"]))).arrays["ids"].size
    assert parsed == [len(file)]
    assert answer.header["hash"] == tokenizer_hash(file)
