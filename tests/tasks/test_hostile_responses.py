"""Verifiers that hang, die, take memory or print: every response has a judgement, and the next
one is judged as if nothing had been."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from teacher_proto.errors import ConfigurationError

from student_trainer.settings.evaluation import VerificationSettings
from student_trainer.tasks.judgement import FAILURES, Judgement
from student_trainer.verification.process import VerifierProcess
from student_trainer.verification.verifiers import Verifiers, waited
from tests.tasks.tools import MIB, of_task, own_task, verifier


@pytest.fixture
def process(own_folder: Path) -> Iterator[VerifierProcess]:
    """One that waits for long."""
    made = verifier(own_folder, 60.0)
    yield made
    made.close()


@pytest.fixture
def hasty(own_folder: Path) -> Iterator[VerifierProcess]:
    made = verifier(own_folder, 3.0)
    yield made
    made.close()


TAKING_LONG = ("hang", "spin")
KINDS = {
    **dict.fromkeys(TAKING_LONG, "time"),
    "memory": "memory",
    "slowly memory": "memory",
    "print": "output",
    "warn": "output",
    "raise": "raised",
    "recursion": "raised",
    "exit": "raised",
    "end": "ended",
    "kill": "ended",
    "nothing": "raised",
    "cannot": "unjudged",
    "long reason": "unjudged",
    "many values": "raised",
    "above": "raised",
    "no reason": "raised",
    "changed": "raised",
    "file": "raised",
}


def test_every_failure_has_its_kind_and_harms_no_other_response(
    process: VerifierProcess, hasty: VerifierProcess, tmp_path: Path
) -> None:
    row = {"path": str(tmp_path / "file")}
    for response, kind in KINDS.items():
        asked = hasty if response in TAKING_LONG else process
        judged = asked.judge("does", row, response)
        assert (response, judged.failure, judged.score) == (response, kind, None), judged.reason
        assert not judged.right
        assert judged.reason
        assert len(judged.reason) < 1000
        assert asked.judge("does", row, "print a little") == Judgement(
            1.0, values={"characters": 14.0}
        )
    assert set(KINDS.values()) <= set(FAILURES)
    assert "SIGKILL" in process.judge("does", row, "kill").reason
    assert "ValueError: of its own" in process.judge("does", row, "raise").reason


@pytest.mark.parametrize(
    "response",
    [
        "",
        "\0" * 3,
        "\ud800 alone",
        "a\nb\r\u2028c",
        "é" * 100,
        "x" * 30_000_000,
        "\U0001f600",
        "{}",
    ],
    ids=["empty", "NUL", "surrogate", "lines", "accents", "megabytes", "emoji", "JSON"],
)
def test_any_text_reaches_the_verifier(process: VerifierProcess, response: str) -> None:
    judged = process.judge("does", {}, response)
    assert judged == Judgement(1.0, values={"characters": float(len(response))})


def test_the_process_reaches_no_network_and_knows_no_secrets(
    process: VerifierProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET_TOKEN", "of the trainer")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        assert process.judge("does", {"port": port}, "network").score == 1
    assert process.judge("does", {}, "environment").score == 1


SOCKETS = """
import socket
from teacher_proto.processes.confinement import refuse_sockets

first, second = socket.socketpair()
refuse_sockets()
first.sendall(b"what is open stays")
assert second.recv(100) == b"what is open stays"
for ask in (socket.socket, lambda: socket.create_connection(("127.0.0.1", 9)), socket.socketpair,
            lambda: socket.getaddrinfo("localhost", 80)):
    try:
        ask()
    except PermissionError:
        continue
    raise SystemExit("a socket was given")
"""


def test_where_no_network_can_be_left_pythons_sockets_are_refused() -> None:
    done = subprocess.run([sys.executable, "-c", SOCKETS], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_row_that_json_cannot_say_is_a_failure_of_its_own(process: VerifierProcess) -> None:
    judged = process.judge("does", {"set": {1}}, "anything")
    assert (judged.failure, judged.score) == ("raised", None)
    assert "JSON cannot say" in judged.reason


def test_a_task_that_cannot_be_prepared_is_told_at_the_start(own_folder: Path) -> None:
    task = own_task(own_folder)
    (own_folder / "own_tasks.py").write_text("import not_there\n")
    process = VerifierProcess({"does": task}, [own_folder], seconds=3.0, memory_bytes=256 * MIB)
    with pytest.raises(ConfigurationError, match="not_there"):
        process.start()
    judged = process.judge("does", {}, "anything")
    assert (judged.failure, "not_there" in judged.reason) == ("start", True)


def test_several_processes_judge_in_the_order_that_was_asked(own_folder: Path) -> None:
    settings = VerificationSettings(processes=2, seconds=3.0, memory_bytes=256 * MIB)
    verifiers = Verifiers({"does": own_task(own_folder)}, settings)
    try:
        assert verifiers.start() in ("of its own", "refused")
        texts = ["a", "hang", "bb", "end", "ccc", "cannot"]
        begun = [verifiers.submit(of_task("does", {}), text) for text in texts]
        judged = waited([*begun, None], lambda: False)
        assert [None if one is None else one.failure or one.values for one in judged] == [
            {"characters": 1.0},
            "time",
            {"characters": 2.0},
            "ended",
            {"characters": 3.0},
            "unjudged",
            None,
        ]
    finally:
        verifiers.close()


def test_a_signal_ends_the_wait_for_those_that_have_not_begun(own_folder: Path) -> None:
    settings = VerificationSettings(seconds=3.0, memory_bytes=256 * MIB)
    verifiers = Verifiers({"does": own_task(own_folder)}, settings)
    try:
        begun = [verifiers.submit(of_task("does", {}), "hang") for _ in range(20)]
        kinds = [one.failure for one in waited(begun, lambda: True) if one is not None]
        assert kinds[0] == "time"
        assert set(kinds[2:]) == {"stopped"}
    finally:
        verifiers.close()
