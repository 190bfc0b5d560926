"""One rank of a run is killed or told to stop, anywhere; the others end with a clear error, and
the run goes on as if nothing had been."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from student_trainer.run import checkpoint
from student_trainer.settings.train import TrainConfig
from tests.proofs.runs import Room, assert_equal, metrics, newest, shown
from tests.support.faults import Fault, killed
from tests.support.ranks import Ranks, start_ranks

pytestmark = pytest.mark.ranks

STEPS = 6
# Groups that two ranks can share, and lost steps that are repeated.
SECTIONS: dict[str, dict[str, Any]] = {
    "rollout": {"prompts_per_step": 4},
    "checkpoint": {"every": 2},
}
# Where a rank is killed, and in which call there: in the order of the starts of one run.
PHASES: dict[str, list[Fault]] = {
    "rollout": killed("student_trainer.rollout.drawing:Drawing.draw", 30),
    "wait": killed("student_trainer.loop:TrainingLoop._scores", 6),
    "backward": killed("student_trainer.update.objective:Objective.losses", 3, after=True),
    "save": killed("student_trainer.ranks.optimizer_files:write", 1, after=True),
}


def config_of(room: Room, name: str, **sections: dict[str, Any]) -> TrainConfig:
    merged = {k: {**SECTIONS.get(k, {}), **sections.get(k, {})} for k in {*SECTIONS, *sections}}
    return room.config(name, STEPS, **merged)


def ranks(
    room: Room, config: TrainConfig, faults: Mapping[int, Sequence[Fault]] | None = None
) -> Ranks:
    """Starts two ranks of a run."""
    folder = config.run.output_dir.parent
    return start_ranks(room.trainers, room.arguments(config), folder, faults=faults)


def finish(room: Room, config: TrainConfig) -> Path:
    started = ranks(room, config)
    assert started.wait() == [0, 0], started.errors(0) + started.errors(1)
    return config.run.output_dir


@pytest.fixture(scope="module")
def straight(common: Room) -> Path:
    return finish(common, config_of(common, "straight-ranks"))


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_go_on_exactly_after_one_was_killed(served: Room, rank: int, straight: Path) -> None:
    config = config_of(served, "killed")
    for phase, fault in PHASES.items():
        started = ranks(served, config, {rank: fault})
        codes = started.wait()
        said = started.errors(1 - rank)
        assert codes[rank] == -signal.SIGKILL, (phase, codes, started.errors(rank))
        assert codes[1 - rank] > 0, (phase, codes, said)
        assert "has lost another rank" in said, (phase, said)
        assert "Traceback" not in said, (phase, said)
    assert_equal(finish(served, config), straight, STEPS)


WRITING = ("student_trainer.rollout.drawing:Drawing.draw", 40)
UPDATING = ("student_trainer.update.optim:Optimizer.step", 2)


@pytest.mark.parametrize(
    ("told", "place"),
    [((0, 1), WRITING), ((1,), WRITING), ((1,), UPDATING)],
    ids=["both", "one", "one in its update"],
)
def test_a_signal_ends_all_ranks_after_the_same_step(
    served: Room, told: tuple[int, ...], place: tuple[str, int], straight: Path
) -> None:
    config = config_of(served, "stopped", checkpoint={"every": 50})
    faults = {rank: killed(*place, number=signal.SIGTERM) for rank in told}
    started = ranks(served, config, faults)
    codes = started.wait()
    assert all(codes[rank] == 128 + signal.SIGTERM for rank in told), (codes, started.errors(0))
    assert all(code > 0 for code in codes), codes
    found = newest(config)
    assert checkpoint.damage(found) is None
    state = checkpoint.load_state(found)
    assert state.step == len(metrics(config.run.output_dir)) >= 1
    assert state.step < STEPS, "the signal came too late to matter"
    before = shown(started.folders[0])
    assert_equal(finish(served, config), straight, STEPS)
    after = shown(started.folders[0])
    assert before + after == list(range(1, STEPS + 1)), "none is done again"
