"""The steps of a start, in their order. A step that is added here is made by ``train``, by
``doctor`` and, where it needs neither a model nor the teacher, by ``train --dry-run``."""

from __future__ import annotations

from student_trainer.distributed.world import World
from student_trainer.startup import (
    held_out,
    inputs,
    machine,
    ranks,
    readings,
    repeats,
    rollouts,
    teacher,
)
from student_trainer.startup.start import Step

STEPS = (
    Step("run directory", machine.run_directory, reads="machine"),
    Step("checkpoint", machine.checkpoint, needs=("run directory",), reads="machine"),
    Step("trackers", machine.trackers, reads="machine"),
    Step("device", machine.device, reads="machine"),
    Step("rollout engine", rollouts.installed, reads="machine"),
    Step("tasks", rollouts.tasks, reads="machine"),
    Step("hub", machine.hub),
    Step("teacher", teacher.teacher),
    Step("data", inputs.data, reads="inputs"),
    Step("estimator", inputs.estimator, reads="machine"),
    Step("student", inputs.student, needs=("device",), reads="model"),
    Step("ends of responses", inputs.ends, needs=("student", "checkpoint"), reads="model"),
    Step("ids", inputs.ids, needs=("student", "data"), reads="model"),
    Step("answers", inputs.answers, needs=("student", "data", "ends of responses"), reads="model"),
    Step("lengths", inputs.lengths, needs=("student",), reads="model"),
    Step("rollouts", rollouts.engine, needs=("rollout engine", "lengths"), reads="model"),
    Step("tokenizer", teacher.tokenizer, needs=("teacher", "student")),
    Step("limits", teacher.limits, needs=("tokenizer",)),
    Step("readings", readings.readings, needs=("tokenizer", "data")),
    Step("resume", teacher.resume, needs=("run directory", "teacher", "data")),
    Step("repeat", repeats.repeats, needs=("limits", "readings")),
    Step("verifiers", rollouts.verifiers, needs=("tasks",)),
    Step("right answers", rollouts.right_answers, needs=("verifiers", "data")),
    Step("environments", rollouts.environments, needs=("rollouts", "data", "tasks")),
    Step("held out", held_out.held_out, needs=("run directory", "readings", "environments")),
)

# What several ranks do besides, each after the step of this name; first of all what has none.
OF_RANKS = {
    "": Step("ranks", ranks.settings, reads="machine", meets=True),
    "run directory": Step("shared files", ranks.files, reads="machine", meets=True),
    "lengths": Step("shards", ranks.shards, reads="model", meets=True),
    "resume": Step("same inputs", ranks.inputs, meets=True),
}


def steps_of(world: World) -> tuple[Step, ...]:
    """The steps that each rank of a run makes."""
    if not world.several:
        return STEPS
    found = [OF_RANKS[""]]
    for step in STEPS:
        found += [step, *([OF_RANKS[step.name]] if step.name in OF_RANKS else [])]
    return tuple(found)
