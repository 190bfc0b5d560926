"""What writes the student's responses."""

from __future__ import annotations

from student_trainer.rollout.engine import make_engine
from student_trainer.startup.start import Start


def engine(start: Start) -> str:
    """Makes the engine of ``rollout.engine``.

    Raises:
        LsmError: it cannot be made, or cannot write what this student would.
    """
    start.engine = make_engine(start.student, start.config.rollout)
    start.stack.callback(start.engine.close)
    return f"{start.engine.name}, up to {start.config.rollout.batch_size} responses together"
