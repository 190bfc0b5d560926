"""The trainer is killed or told to stop, anywhere; the run goes on as if it had not been."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from student_trainer.run import checkpoint
from student_trainer.run.retention import listing
from tests.proofs.kills import SAVES, STEPS
from tests.proofs.runs import Room, assert_equal, errors, forget, metrics, newest, shown, tensors
from tests.support.faults import Fault, killed

EVERY_SECOND = {"checkpoint": {"every": 2}}


def killed_all_along(
    room: Room, faults: list[list[Fault]], steps: int, **sections: Any
) -> tuple[int, int]:
    """Starts a run again after every kill, then lets it end; gives the number of kills
    and of damaged checkpoints they left."""
    config = room.config("killed", steps, **{**EVERY_SECOND, **sections})
    kills = damaged = 0
    for fault in faults:
        code = room.run(config, fault)
        assert code == -signal.SIGKILL, (fault, code, errors(config))
        kills += 1
        found = listing(config.run.output_dir / "checkpoints")
        damaged += sum(checkpoint.damage(path) is not None for path in found)
    room.finish(config)
    return kills, damaged


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_killed_trainer_goes_on_exactly(served: Room, staleness: int) -> None:
    pipeline = {"staleness": staleness}
    straight = served.finish(served.config("straight", 9, pipeline=pipeline, **EVERY_SECOND))
    faults = [SAVES[4 + staleness], STEPS[3], SAVES[8]] if staleness else [STEPS[4], SAVES[7]]
    assert killed_all_along(served, faults, 9, pipeline=pipeline) == (len(faults), 0)
    assert_equal(served.folder / "killed" / "run", straight, 9)


@pytest.fixture(scope="module")
def straight_at_6(common: Room) -> Path:
    return common.finish(common.config("straight", 6, **EVERY_SECOND))


@pytest.fixture(scope="module")
def killed_at_5(common: Room) -> Path:
    """A run that was killed in its fifth step, its last checkpoint of the fourth."""
    config = common.config("killed", 6, **EVERY_SECOND)
    assert common.run(config, killed("student_trainer.pipeline:Pipeline.drop", 5)) < 0
    return config.run.output_dir


@pytest.mark.parametrize("what", ["nothing", "rng", "moments", "position"])
def test_a_resume_that_forgets_something_is_noticed(
    served: Room, what: str, killed_at_5: Path, straight_at_6: Path
) -> None:
    config = served.config("forgetful", 6, **EVERY_SECOND)
    shutil.copytree(killed_at_5, config.run.output_dir)
    if what != "nothing":
        forget(newest(config), what)
    equal = tensors(served.finish(config), 6) == tensors(straight_at_6, 6)
    assert equal == (what == "nothing")


# Where the signal comes, and how many steps are then complete.
STOPS = {
    "writing": ("student_trainer.rollout.drawing:Drawing.draw", 72, 1),
    "waiting": ("student_trainer.loop:TrainingLoop._scores", 8, 1),
    "updating": ("student_trainer.update.optim:Optimizer.step", 2, 2),
    "saving": ("teacher_proto.program.files:_sync", 2, 2),
}


@pytest.mark.parametrize("place", STOPS)
def test_a_signal_saves_what_is_complete_and_no_step_is_redone(
    served: Room, place: str, straight_at_6: Path
) -> None:
    target, call, least = STOPS[place]
    number = signal.SIGINT if place == "updating" else signal.SIGTERM
    config = served.config("stopped", 6, checkpoint={"every": 2 if place == "saving" else 50})
    assert served.run(config, killed(target, call, number=number)) == 128 + number
    found = newest(config)
    state = checkpoint.load_state(found)
    assert state.step == len(metrics(config.run.output_dir)) >= least
    assert state.step < 6, "the signal came too late to matter"
    assert_equal(served.finish(config), straight_at_6, 6)
    assert shown(served.folder / "stopped") == [1, 2, 3, 4, 5, 6], "none is done again"
