"""Jobs in processes of their own: what they have, how they end, and what they leave."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from student_trainer.study.parts.children import in_children

LEFT_BY_THE_CALLER: list[str] = []


def _end(code: int) -> None:
    os.write(1, f"ends with {code}\n".encode())
    raise SystemExit(code)


def _wait_for_ever() -> None:
    signal.pause()


def _end_with_what_the_caller_left() -> None:
    raise SystemExit(len(LEFT_BY_THE_CALLER))


def _end_with_whose_child_it_is(caller: int) -> None:
    raise SystemExit(os.getppid() != caller)


class _NotThere:
    """What cannot be made again where it is sent."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _end, (5,)

    def __call__(self) -> None:
        raise NotImplementedError


def test_children_end_with_their_own_code_and_log_and_are_ended_with_the_rest(
    tmp_path: Path,
) -> None:
    jobs = [(partial(_end, code), tmp_path / f"{code}.log") for code in (0, 3, 0)]
    found = dict(in_children(jobs, 2))
    assert found == {0: 0, 1: 3, 2: 0}
    assert (tmp_path / "3.log").read_text() == "ends with 3\n"
    children = in_children([(_wait_for_ever, tmp_path / "w.log"), jobs[1]], 2)
    assert next(children) == (1, 3)
    (waits,) = multiprocessing.active_children()
    children.close()
    assert multiprocessing.active_children() == []
    assert waits.pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(waits.pid, 0)


def test_children_have_nothing_of_the_process_that_calls_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # gRPC may not work in the fork of a process that has used it.
    monkeypatch.setattr(sys.modules[__name__], "LEFT_BY_THE_CALLER", ["a thread of gRPC"])
    jobs = [(_end_with_what_the_caller_left, tmp_path / "left.log")]
    assert list(in_children(jobs, 1)) == [(0, 0)]


def test_no_process_stands_between_that_could_end_without_them(tmp_path: Path) -> None:
    jobs = [(partial(_end_with_whose_child_it_is, os.getpid()), tmp_path / "one.log")]
    assert list(in_children(jobs, 1)) == [(0, 0)]


def test_the_log_of_a_child_that_does_not_begin_says_nothing_of_an_earlier_one(
    tmp_path: Path,
) -> None:
    log = tmp_path / "one.log"
    log.write_text("the words of an earlier attempt")
    assert list(in_children([(_NotThere(), log)], 1)) == [(0, 5)]
    assert log.read_text() == ""
