"""The teacher is killed in the middle of batches and started again, as itself or as another."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from student_trainer.run import checkpoint
from tests.proofs.runs import Room, assert_equal, errors, metrics, newest, shown, tensors
from tests.support.faults import POISONS, killed

SCORE = "teacher_server.engines.torch.transformers:TransformersEngine.score"


def killed_teachers(
    room: Room, model: Path, calls: Sequence[int], steps: int, name: str = "disturbed"
) -> int:
    """A run whose teacher is killed at these of its own calls, one start after another;
    gives the number of kills."""
    kills = 0
    finished = threading.Event()
    first = room.teacher.start(model, killed(SCORE, calls[0]))

    def keep() -> None:
        nonlocal kills
        teacher, left = first, list(calls[1:])
        while teacher.wait() == -signal.SIGKILL and not finished.is_set():
            kills += 1
            call = left.pop(0) if left else None
            # In turn as work arrives and as its reply is about to leave.
            faults = killed(SCORE, call, after=len(left) % 2 == 0) if call else []
            teacher = room.teacher.start(model, faults)

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        room.finish(room.config(name, steps))
    finally:
        finished.set()
        room.teacher.children[-1].send(signal.SIGTERM)
        keeper.join()
    return kills


def test_a_run_rides_through_restarts_of_its_teacher(room: Room, tiny_model_dir: Path) -> None:
    kills = killed_teachers(room, tiny_model_dir, [4, 9, 14], 8)
    assert kills == 3
    room.teacher.start(tiny_model_dir)
    straight = room.finish(room.config("straight", 8))
    run = room.folder / "disturbed" / "run"
    assert_equal(run, straight, 8)
    assert shown(room.folder / "disturbed") == list(range(1, 9)), "no step is done twice"


def test_another_teacher_ends_the_run_before_the_next_update(
    room: Room, tiny_model_dir: Path, student_model_dir: Path
) -> None:
    stopped_by_another(room, tiny_model_dir, student_model_dir)


def stopped_by_another(room: Room, own: Path, foreign: Path) -> None:
    """A run whose teacher comes back as another stops; with its own one it ends as if
    nothing had been."""
    # Two requests at the start, three a step: the thirteenth is of the fourth step.
    first = room.teacher.start(own, killed("teacher_server.scoring.service:score", 13))
    config = room.config("changed", 6, pipeline={"staleness": 0, "send": "group"})
    trainer = room.start(config)
    assert first.wait() == -signal.SIGKILL
    second = room.teacher.start(foreign)
    assert trainer.wait() == 3
    assert [line["step"] for line in metrics(config.run.output_dir)] == [1, 2, 3]
    assert checkpoint.load_state(newest(config)).step == 3
    assert "error: " in errors(config)
    assert room.run(config) == 3, "it does not begin again with the other one either"
    second.send(signal.SIGTERM)
    assert second.wait() == 0
    room.teacher.start(own)
    run = room.finish(config)
    straight = room.finish(room.config("straight", 6, pipeline={"staleness": 0, "send": "group"}))
    assert_equal(run, straight, 6)


@pytest.fixture(scope="module")
def healthy(common: Room) -> Path:
    sections = {"pipeline": {"staleness": 0, "send": "group"}}
    return common.finish(common.config("healthy", 2, **sections))


@pytest.mark.parametrize("kind", POISONS)
def test_a_poisoned_reply_is_refused_and_nothing_is_updated(
    served: Room, kind: str, healthy: Path
) -> None:
    # Two requests at the start, three a step; from the ninth on replies are poisoned.
    sections = {"run": {"name": f"poison {kind}"}, "pipeline": {"staleness": 0, "send": "group"}}
    config = served.config("poisoned", 5, **sections)
    assert served.run(config) == 3
    assert "results[" in errors(config).splitlines()[-1], "it says where"
    assert [line["step"] for line in metrics(config.run.output_dir)] == [1, 2]
    assert checkpoint.load_state(newest(config)).updates == 2
    assert tensors(config.run.output_dir, 2) == tensors(healthy, 2)
