"""What writes the student's responses, and what judges them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ChatPrompt, Prompt

from student_trainer.data.rendering import PromptReader
from student_trainer.environments.environments import Environments
from student_trainer.evaluation.accuracy import judged_prompts
from student_trainer.rollout.base import PromptItem
from student_trainer.rollout.engine import make_engine
from student_trainer.rollout.turns.acting import Acting
from student_trainer.rollout.turns.engine import TurnsEngine
from student_trainer.rollout.turns.template import TurnTemplate
from student_trainer.rollout.vllm.options import PASSED, check_installed
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.start import Start
from student_trainer.tasks.base import named_in_errors
from student_trainer.tasks.calling.formats import FORMATS
from student_trainer.tasks.environment import ActingTask
from student_trainer.tasks.judgement import Judgement
from student_trainer.verification.verifiers import Verifiers

# How many prompts of each task are tried before the run, and for how many seconds in all.
TRIED, SECONDS = 64, 10.0
NO_NETWORK = (
    "this system gives {process} no network of its own: Python's sockets are refused in it, and a "
    "library that asks the system by itself is not stopped"
)


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
            with named_in_errors(name):
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
    if not found.judged:
        return "no response is judged"
    start.verifiers = found
    if not found.tasks:
        return "episodes are judged by their environments"
    if found.start() == "refused":
        start.warn(NO_NETWORK.format(process="the process that judges responses"))
    return f"responses of {', '.join(found.tasks)} are judged in a process without a network"


def too_large_together(
    name: str, task: ActingTask, held_out: int, config: TrainConfig, ranks: int
) -> str:
    """A warning where the episodes that are open at once take more memory than their processes
    may have; empty where they do not.

    Args:
        name: of the task.
        held_out: its prompts that an evaluation has.
        ranks: each of which plays its share of a step.
    """
    settings = config.verification
    step = config.rollout.prompts_per_step * config.rollout.group_size // ranks
    most = -(-max(step, held_out * config.evaluation.task_responses) // settings.processes)
    if most * task.episode_bytes <= settings.memory_bytes:
        return ""
    return (
        f"tasks.{name}: a process plays up to {most} episodes at once, which take "
        f"{most * task.episode_bytes} bytes and more, and verification.memory_bytes is "
        f"{settings.memory_bytes}: those that do not fit are played once more alone, which takes "
        "long, or fail. Raise it, or verification.processes"
    )


def environments(start: Start) -> str:
    """Starts the processes in which the environments of tasks run, and checks that the student's
    chat template writes what they answer.

    Raises:
        ConfigurationError: as ``Environments.start`` and ``TurnTemplate.check``.
    """
    found = Environments(start.config.tasks or {}, start.config.verification)
    start.stack.callback(found.close)
    if not found.tasks:
        return "no task acts"
    reader = PromptReader(start.student.tokenizer, start.config.data, start.now)
    template = TurnTemplate(reader, start.student.terminators)
    for name, task in found.tasks.items():
        every = (*start.prompts.train, *start.prompts.held_out)
        # By shape: a template may take one and refuse another.
        shapes = {_shape(prompt.source): prompt for prompt in every if prompt.task == name}
        for prompt in shapes.values():
            place = f"tasks.{name}" if len(shapes) == 1 else prompt.place or f"tasks.{name}"
            template.check(prompt.source, task.observed_as, place)
    tool_format = template.tool_format()
    calling = [name for name, task in found.tasks.items() if task.calls_tools]
    if calling and not tool_format:
        raise ConfigurationError(
            "the student's chat template writes no calls of tools, or writes them in none of the "
            f"forms {', '.join(FORMATS)}",
            where=f"tasks.{calling[0]}",
            fix="take a student whose chat template has tools, or set student.chat_template",
        )
    for name, task in found.tasks.items():
        held_out = len(judged_prompts(start.prompts.held_out, name, start.config.evaluation))
        if told := too_large_together(name, task, held_out, start.config, start.world.size):
            start.warn(told)
    if found.start() == "refused":
        start.warn(NO_NETWORK.format(process="the process of environments"))
    start.acting = Acting(start.student, found, template, tool_format)
    start.engine = TurnsEngine(start.engine, start.acting, start.config.rollout)
    return f"episodes of {', '.join(found.tasks)} are played in a process without a network"


def right_answers(start: Start) -> str:
    """Judges an empty response to some prompts of each task: what cannot be judged then never can,
    as where the right answer itself cannot be read. Warns of these."""
    if start.verifiers is None or not start.verifiers.tasks:
        return "no response is judged by itself"
    if not start.world.writes:
        return "rank 0 tries them"
    prompts = (*start.prompts.train, *start.prompts.held_out)
    end, tried, bad = time.monotonic() + SECONDS, 0, 0
    for name in start.verifiers.tasks:
        own = [prompt for prompt in prompts if prompt.task == name]
        failed: list[tuple[PromptItem, Judgement]] = []
        count = 0
        for prompt in _spread(own, TRIED):
            if time.monotonic() > end:
                break
            count += 1
            judged = start.verifiers.submit(prompt, "").result()
            if judged.failure:
                failed.append((prompt, judged))
        tried, bad = tried + count, bad + len(failed)
        if failed:
            prompt, judged = failed[0]
            start.warn(
                f"tasks.{name}: no response to {len(failed)} of {count} prompts that were tried "
                f"can be judged, not even an empty one: the first is {prompt.place}, "
                f"({judged.failure}) {judged.reason!a}"
            )
    return f"an empty response to {tried} prompts is judged, and to {bad} it cannot be"


def _shape(source: Prompt) -> object:
    """What of a prompt a chat template tells apart, besides its texts."""
    if not isinstance(source, ChatPrompt):
        return ()
    turns = tuple((one.role, type(one.content), *sorted(one.extra)) for one in source.messages)
    arguments = source.template_arguments.items()
    return turns, tuple(sorted((name, bool(value)) for name, value in arguments))


def _spread(prompts: Sequence[PromptItem], count: int) -> list[PromptItem]:
    """At most so many of the prompts, from the first on in equal steps."""
    return list(prompts[:: -(-len(prompts) // count)]) if prompts else []
