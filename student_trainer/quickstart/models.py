"""The models of the quickstart: its teacher, and a student made from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from student_trainer.commands.prune import prune
from student_trainer.quickstart.cache import Note, ensure
from student_trainer.quickstart.foreign import foreign_dir
from student_trainer.quickstart.prepare import smollm2_dir

DROPPED_LAYERS = (3, 5, 7, 12, 14, 17)


def prepare_models(note: Note, prompts: Path, *, cross_tokenizer: bool) -> tuple[Path, Path]:
    """The folders of the teacher and of the student, made if they are not cached. The
    student is the pruned teacher, or the whole teacher with another tokenizer.

    Args:
        prompts: a JSON Lines file on which the other tokenizer is trained too.
    """
    teacher = smollm2_dir(note)
    student = foreign_dir(teacher, prompts, note) if cross_tokenizer else pruned_dir(teacher, note)
    return teacher, student


def link_models(folder: Path, teacher: Path, student: Path) -> None:
    """Makes ``folder/teacher`` and ``folder/student`` as relative links, which work wherever
    the volume with both is mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in (("teacher", teacher), ("student", student)):
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(model, folder.resolve()))


def pruned_dir(teacher: Path, note: Note) -> Path:
    """The teacher without six of its thirty layers, in the cache beside it."""

    def make(folder: Path) -> Mapping[str, object]:
        note(f"removing layers {', '.join(map(str, DROPPED_LAYERS))} to make the student")
        prune(str(teacher), folder, drop=DROPPED_LAYERS)
        return {"source": teacher.name, "dropped_layers": list(DROPPED_LAYERS)}

    dropped = "-".join(map(str, DROPPED_LAYERS))
    return ensure(teacher.parent / f"{teacher.name}-without-{dropped}", make)
