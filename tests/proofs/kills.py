"""Where the proofs kill the trainer. Call counts reach a few steps into an attempt;
checkpoints are due every second step, so that steps are lost and repeated."""

from __future__ import annotations

from tests.support.faults import Fault, killed

# In a save, in the order it goes through.
SAVES: list[list[Fault]] = [
    killed("student_trainer.loop:save_weights", 1),
    killed("student_trainer.loop:save_weights", 2, after=True),
    killed("student_trainer.run.checkpoint:save_file", 1, after=True),
    killed("student_trainer.run.checkpoint:save_file", 5),
    killed("student_trainer.run.checkpoint:save_file", 3, after=True),
    killed("student_trainer.run.checkpoint:_entry", 4),
    killed("teacher_proto.program.files:_sync", 3),
    killed("pathlib:Path.rename", 1),
    killed("student_trainer.run.checkpoint:delete_old_checkpoints", 2),
    killed("teacher_proto.program.files:shutil.rmtree", 1),
]
# Elsewhere, in the order of a step.
STEPS: list[list[Fault]] = [
    killed("student_trainer.pipeline:Pipeline._write", 3),
    killed("student_trainer.rollout.drawing:Drawing.draw", 40),
    killed("student_trainer.pipeline:Pipeline._send", 8),
    killed("student_trainer.update.objective:Objective.losses", 6),
    killed("student_trainer.update.optim:Optimizer.step", 3),
    killed("student_trainer.update.optim:Optimizer._round_masters", 4),
    killed("student_trainer.pipeline:Pipeline.drop", 3, after=True),
    killed("student_trainer.loop:append_metrics", 3),
    killed("student_trainer.loop:append_metrics", 2, after=True),
    killed("student_trainer.loop:TrainingLoop.restore", 1),
]
