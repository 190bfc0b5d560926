"""What a dry run prints besides the settings: the steps of a start that it can make, and how
the two tokenizers relate.

It registers nothing, loads no model, and reads only what is on this machine. A teacher
that does not answer at once is reported, not waited for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from teacher_proto.errors import LsmError
from teacher_proto.tokenizer_hash import other_version, tokenizer_hash

from student_trainer.settings.teacher import TeacherSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.teacher.connection import connect, find_teacher

PATIENCE = 2.0  # seconds


def look(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """(name, finding) of those steps of a start that look at this machine alone; the finding
    of a step that is not made is why.

    Raises:
        LsmError: of the first step that fails: the run cannot start.
    """
    from student_trainer.startup import steps
    from student_trainer.startup.start import Start

    made: set[str] = set()
    with Start(config) as start:
        for step in steps.STEPS:
            if step.reads not in ("machine", "inputs"):
                continue
            elsewhere = not_here(config) if step.reads == "inputs" else ""
            missing = [need for need in step.needs if need not in made]
            if elsewhere or missing:
                yield step.name, elsewhere or f"not looked at: it needs {', '.join(missing)}"
                continue
            yield step.name, "; ".join([step.check(start), *start.take_warnings()])
            made.add(step.name)


def not_here(config: TrainConfig) -> str:
    """Why the prompts are not read, or "" when they and the student are on this machine."""
    from student_trainer.data.files.named import named_datasets

    if not Path(config.student.model).is_dir():
        return "not read (the student is no folder of this machine)"
    for one in (*named_datasets(config, "train"), *named_datasets(config, "held_out")):
        if one.on_hub or not Path(one.name).exists():
            return f"not read ({one.name} is not on this machine)"
    return ""


def compare_tokenizers(config: TrainConfig) -> str:
    """One line on how the student's tokenizer, as a run loads it, relates to each teacher's, or
    on why they are not compared."""
    from student_trainer.student.tokenizer import load_tokenizer

    file = Path(config.student.model) / "tokenizer.json"
    if not file.is_file():
        return "not compared (the student is no folder of this machine)"
    try:
        own = tokenizer_hash(load_tokenizer(config.student).backend_tokenizer.to_str())
    except LsmError as error:
        return f"not compared ({error.what})"
    found = {
        name: compare_with(own, settings, config.run.name)
        for name, settings in config.named_teachers.items()
    }
    if config.teachers is None:
        return next(iter(found.values()))
    return "; ".join(f"{name}: {told}" for name, told in found.items())


def compare_with(own: str, settings: TeacherSettings, run: str) -> str:
    """How the tokenizer of this hash relates to one teacher's."""
    try:
        with connect(settings, run) as client:
            seconds = min(settings.connect_timeout_seconds, PATIENCE)
            info = find_teacher(client.get_teacher(timeout=seconds).teachers, settings)
    except LsmError as error:
        return f"not compared ({error.what})"
    outdated = other_version(info.identity.tokenizer_hash, here="the trainer", there="the server")
    if outdated is not None:
        return f"not compared ({outdated[0]}; {outdated[1]})"
    if own == info.identity.tokenizer_hash:
        return "the student's is the teacher's"
    known = info.tokenizers.get(own)
    if known is None:
        return (
            "the student's is not the teacher's and not registered there yet; `student-trainer "
            "doctor` registers it and tells the level"
        )
    return f"the student's is not the teacher's: level {known.name}"
