"""When vLLM sleeps: whenever nothing is written. On a CPU it cannot, so this is of the calls."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pytest

from student_trainer.rollout.vllm import engine as of_vllm
from student_trainer.rollout.vllm.core import Request, Response
from student_trainer.rollout.vllm.engine import VllmEngine
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student
from tests.rollout.test_vllm_engine import SETTINGS, prompts


class Calls:
    """Stands where vLLM's processes are, and keeps what it is asked."""

    workers = 1

    def __init__(self, student: Student) -> None:
        self.asked: list[str] = []
        self._version: int | None = None
        self._facts = {"vocabulary_size": student.vocabulary_size, "dtype": "float32"}

    def call(self, method: str, *arguments: Any) -> list[Any]:
        if method == "rollout_take":
            self.asked.append(method)
            self._version = arguments[1]
        return [self._facts if method == "rollout_install" else {"version": self._version}]

    def write(self, requests: Sequence[Request]) -> Generator[Response]:
        self.asked.append("write")
        one = np.ones(1, np.float32)
        for place in range(len(requests)):
            yield Response(place, np.array([5], np.int32), -one, one, True)

    def reset_prefix_cache(self) -> bool:
        return True

    def sleep(self) -> None:
        self.asked.append("sleep")

    def wake_up(self) -> None:
        self.asked.append("wake_up")

    def close(self) -> None:
        self.asked.append("close")


@pytest.mark.parametrize("sleep", [True, False])
def test_it_sleeps_whenever_nothing_is_written(
    wide_student: Student, monkeypatch: pytest.MonkeyPatch, sleep: bool
) -> None:
    core = Calls(wide_student)
    monkeypatch.setattr(of_vllm, "start_core", lambda *arguments: core)
    monkeypatch.setattr(of_vllm, "check_gap", lambda *arguments: None)
    settings = {**SETTINGS, "vllm": {"sleep": sleep}}
    engine = VllmEngine(wide_student, RolloutSettings.model_validate(settings), 96)
    assert core.asked == ["sleep"] * sleep, "from the start: the first step may write nothing"
    for version in (1, 2):
        core.asked.clear()
        engine.update_weights(version)
        engine.generate(prompts(), seed=1, step=version)
        assert core.asked == [*["wake_up"] * sleep, "rollout_take", "write", *["sleep"] * sleep]
    core.asked.clear()
    engine.update_weights(3)
    assert engine.generate([], seed=1, step=3) == []
    assert core.asked == [*["wake_up"] * sleep, "rollout_take", *["sleep"] * sleep]
