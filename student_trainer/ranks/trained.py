"""The trained model of a run, as it is published."""

from __future__ import annotations

import shutil
from pathlib import Path

from teacher_proto.program.files import atomic_folder

from student_trainer.distributed.folder import folder_of_ranks
from student_trainer.distributed.world import World
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student, load_student, save_final, save_weights


def save_trained(student: Student, config: TrainConfig, path: Path, world: World) -> Student:
    """Saves the trained student as ``path``, with adapters folded in where the settings ask for
    it. Every rank calls it, and rank 0 writes.

    Returns:
        The student to go on with: as it was saved, or with several ranks as it is.
    """
    merge = bool(config.student.lora and config.student.lora.merge_final)
    if not world.several:
        with atomic_folder(path, replace=True) as work:
            return save_final(student, work, merge=merge)
    with folder_of_ranks(path, world, replace=True) as work:
        # Shards are merged by nobody: rank 0 folds the saved adapters into a model of its own.
        saved = work / "adapters" if merge else work
        world.each(lambda: save_weights(student, saved))
        if merge:
            world.on_first(lambda: _fold(saved, config, work), however_long=True)
    return student


def _fold(saved: Path, config: TrainConfig, folder: Path) -> None:
    """Folds saved adapters into a model of their own on the CPU, which is written to ``folder``;
    the adapters are removed. No sequence is trained on there: neither flash attention, which
    computes on a GPU alone, nor packing is needed."""
    there = {"device": "cpu", "attention": "auto", "packing": "off"}
    settings = config.student.model_copy(update=there)
    whole = load_student(settings, saved, config.rollout.stop_ids, config.data.template_arguments)
    save_final(whole, folder, merge=True)
    shutil.rmtree(saved)
