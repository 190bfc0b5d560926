"""Processes that judge: how they begin and end, what they leave, and what a run may ask of them."""

from __future__ import annotations

import os
import select
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from teacher_proto.errors import ConfigurationError

from student_trainer.settings.evaluation import VerificationSettings
from student_trainer.tasks.base import MAX_VALUES
from student_trainer.verification import child as child_module
from student_trainer.verification.process import VerifierProcess
from student_trainer.verification.verifiers import Verifiers, waited
from tests.tasks.tools import MIB, of_task, own_task, verifier


def is_gone(process: int) -> bool:
    """Whether a process, which may be a zombie of another parent, ends within a while."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(20_000))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("response", "kind"), [("leave and hang", "time"), ("leave and end", "ended")]
)
def test_what_a_verifier_started_ends_with_it(
    own_folder: Path, tmp_path: Path, response: str, kind: str
) -> None:
    process = verifier(own_folder, 1.0)
    row = {"path": str(tmp_path / "number")}
    try:
        assert process.judge("does", row, response).failure == kind
        assert is_gone(int((tmp_path / "number").read_text()))
    finally:
        process.close()


def test_a_closed_process_leaves_nothing_and_does_not_start_again(own_folder: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    process = verifier(own_folder, 60.0)
    network = process.start()
    number = int(process.judge("does", {}, "number").values["number"])
    assert process.start() == network
    assert process.judge("does", {}, "number").values["number"] == number
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ConfigurationError, match="the run ends"):
        process.start()
    assert process.judge("does", {}, "anything").failure == "start"


def test_an_interrupt_ends_a_start_that_takes_long(own_folder: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = VerifierProcess(
        {"does": own_task(own_folder, "Slow", path=str(pipe))},
        [own_folder],
        seconds=60.0,
        memory_bytes=256 * MIB,
    )
    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(process.start)
        assert pipe.read_text() == "it prepares"
        process.interrupt()
        with pytest.raises(ConfigurationError, match="SIGKILL"):
            starting.result(60)
    process.close()


def test_what_prepare_raises_in_the_process_alone_is_told(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET_TOKEN", "of the trainer")
    task = own_task(own_folder, "Variable")
    task.prepare()
    process = VerifierProcess({"it": task}, [own_folder], seconds=3.0, memory_bytes=256 * MIB)
    with pytest.raises(ConfigurationError) as caught:
        process.start()
    assert "tasks.it: preparing it raises LookupError: no A_SECRET_TOKEN." in caught.value.what
    process.close()


def test_who_insists_gets_a_judgement_of_the_next_process_or_an_error(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "PAUSE_SECONDS", 0.2)
    settings = VerificationSettings(seconds=60.0, memory_bytes=256 * MIB)
    verifiers = Verifiers({"does": own_task(own_folder)}, settings)
    prompt, module = of_task("does", {}), own_folder / "own_tasks.py"
    source = module.read_text()

    def judged(text: str, *, insist: bool) -> str:
        return verifiers.submit(prompt, text, insist=insist).result().failure

    try:
        assert judged("end", insist=True) == "ended"
        module.write_text("import not_there\n")
        assert judged("anything", insist=False) == "start"
        module.write_text(source)
        assert judged("anything", insist=True) == ""
        assert judged("end", insist=True) == "ended"
        module.write_text("import not_there\n")
        with pytest.raises(ConfigurationError, match="not_there"):
            judged("anything", insist=True)
    finally:
        verifiers.close()


def test_who_waits_for_the_next_start_gets_a_failure_when_the_run_ends(
    own_folder: Path,
) -> None:
    class Ends(threading.Event):
        """The run ends while somebody waits."""

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            assert timeout > 0
            self.set()
            return True

    process = VerifierProcess(
        {"does": own_task(own_folder)}, [own_folder], seconds=60.0, memory_bytes=256 * MIB
    )
    process._closed = Ends()
    (own_folder / "own_tasks.py").write_text("import not_there\n")
    judged = process.judge("does", {}, "anything", insist=True)
    assert (judged.failure, judged.reason) == ("start", "the run ends")
    process.close()


def test_the_names_of_values_of_a_task_are_bounded(own_folder: Path) -> None:
    settings = VerificationSettings(seconds=60.0, memory_bytes=256 * MIB)
    verifiers = Verifiers({"does": own_task(own_folder)}, settings)
    try:
        texts = [f"name n{n}" for n in range(MAX_VALUES + 2)]
        begun = [verifiers.submit(of_task("does", {}), text) for text in (*texts, texts[0])]
        kinds = [one.failure for one in waited(begun, lambda: False) if one is not None]
        assert kinds == [""] * MAX_VALUES + ["raised"] * 2 + [""]
    finally:
        verifiers.close()
