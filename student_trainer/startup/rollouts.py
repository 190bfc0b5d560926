"""What writes the student's responses."""

from __future__ import annotations

from student_trainer.rollout.engine import make_engine
from student_trainer.rollout.vllm.options import PASSED, check_installed
from student_trainer.startup.start import Start


def installed(start: Start) -> str:
    """Whether what ``rollout.engine`` names is there.

    Raises:
        ConfigurationError: vLLM is not installed, of another version, or does not take one of
            ``rollout.vllm.options``.
    """
    settings = start.config.rollout
    if settings.engine != "vllm":
        return f"{settings.engine} writes the responses"
    if settings.vllm.place == "server":
        return f"vLLM writes the responses, at {settings.vllm.address}"
    found = check_installed()
    for name in settings.vllm.options:
        PASSED.check(name)
    return f"vLLM {found} writes the responses"


def engine(start: Start) -> str:
    """Makes the engine of ``rollout.engine``.

    Raises:
        LsmError: it cannot be made, or cannot write what this student would.
    """
    longest = start.config.data.max_prompt_tokens + start.config.rollout.max_new_tokens
    start.engine = make_engine(start.student, start.config.rollout, longest)
    start.stack.callback(start.engine.close)
    return f"{start.engine.name}, up to {start.config.rollout.batch_size} responses together"
