"""What a dry run tells beside the settings: how the two tokenizers relate.

It registers nothing and loads no model; a teacher that does not answer at once is said.
"""

from __future__ import annotations

from pathlib import Path

from teacher_proto.errors import LsmError
from teacher_proto.tokenizer_hash import tokenizer_hash

from student_trainer.config import TrainConfig
from student_trainer.teacher_connection import connect, named

PATIENCE = 2.0  # seconds


def compare_tokenizers(config: TrainConfig) -> str:
    """One line; what cannot be told and why where it cannot."""
    file = Path(config.student.model) / "tokenizer.json"
    if not file.is_file():
        return "not compared (the student is no folder of this machine)"
    try:
        own = tokenizer_hash(file.read_bytes())
        with connect(config.teacher, config.run.name) as client:
            seconds = min(config.teacher.connect_timeout_seconds, PATIENCE)
            info = named(client.get_teacher(timeout=seconds).teachers, config.teacher)
    except LsmError as error:
        return f"not compared ({error.what})"
    if own == info.identity.tokenizer_hash:
        return "the student's is the teacher's"
    known = info.tokenizers.get(own)
    if known is None:
        return (
            "the student's is not the teacher's and not registered there yet; `student-trainer "
            "doctor` registers it and tells the level"
        )
    return f"the student's is not the teacher's: level {known.name}"
