"""What writes the student's responses, and what judges them."""

from __future__ import annotations

from teacher_proto.errors import ConfigurationError

from student_trainer.rollout.engine import make_engine
from student_trainer.rollout.vllm.options import PASSED, check_installed
from student_trainer.startup.start import Start
from student_trainer.verification.verifiers import Verifiers


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


def tasks(start: Start) -> str:
    """Whether every task has what it needs.

    Raises:
        ConfigurationError: as ``Task.prepare``.
    """
    found = start.config.tasks
    if found is None:
        return "prompts of data.train"
    for name, task in found.items():
        try:
            task.prepare()
        except ConfigurationError:
            raise
        except Exception as error:  # of a class of a user's own
            raise ConfigurationError(
                f"preparing it raises {type(error).__name__}: {error}",
                where=f"tasks.{name}",
                fix="mend the task's method `prepare`, or its settings",
            ) from error
    return ", ".join(f"{name} ({task.kind})" for name, task in found.items())


def verifiers(start: Start) -> str:
    """Starts the processes that judge responses.

    Raises:
        ConfigurationError: as ``Verifiers.start``.
    """
    found = Verifiers(start.config.tasks or {}, start.config.verification)
    start.stack.callback(found.close)
    if not found.tasks:
        return "no response is judged"
    start.verifiers = found
    if found.start() == "refused":
        start.warn(
            "this system gives the process that judges responses no network of its own: Python's "
            "sockets are refused in it, and a library that asks the system by itself is not stopped"
        )
    return f"responses of {', '.join(found.tasks)} are judged in a process without a network"
