"""Steps that ask the teacher's service: is it there, does it fit, is it the same as before?"""

from __future__ import annotations

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings_keys import flatten

from student_trainer.run.resume import COARSE, check_prompts, check_teacher
from student_trainer.startup.inputs import longest_response
from student_trainer.startup.start import Start
from student_trainer.teacher.connection import check_reachable
from student_trainer.teacher.link import TeacherLink


def teacher(start: Start) -> str:
    """Raises what ``check_reachable`` raises: nobody answers, or refuses."""
    settings = start.config.teacher
    start.info = check_reachable(settings, start.config.run.name)
    return f"{settings.name} answers at {settings.address}"


def resume(start: Start) -> str:
    """Whether prompts and teacher are those that the checkpoint was made with.

    Raises:
        ConfigurationError, ContractMismatchError: as ``check_prompts`` and
            ``check_teacher``.
    """
    if start.resumed is None:
        return "nothing to continue from"
    allowed = start.config.checkpoint.allow_changed
    check_prompts(start.resumed, start.prompts.digest, allowed)
    if unknown := check_teacher(start.resumed, start.info.identity):
        start.warn(unknown)
    return f"the prompts and the teacher are those of step {start.resumed.step}"


def tokenizer(start: Start) -> str:
    """Connects to the teacher, and registers the student's tokenizer where it is another. Warns
    where the student can draw tokens that the teacher has no row for.

    Raises:
        LsmError: as ``TeacherLink``, ``Loss.check_realigned`` and ``check_earlier_coarse``.
    """
    config = start.config
    link = TeacherLink(config.teacher, start.student, run=config.run.name)
    start.teacher = start.stack.enter_context(link)
    if link.realigned:
        config.loss.check_realigned()
    check_earlier_coarse(start)
    drawn, theirs = start.student.drawn_below, link.info.vocabulary_size
    if not link.realigned and drawn > theirs:
        start.warn(
            f"the student's tokens go up to id {drawn - 1} and the teacher has rows for those up "
            f"to {theirs - 1}: it refuses prompts and responses with one beyond, which are left "
            "out (refused_rollouts, dropped_rows)"
        )
    return link.describe_tokenizers()


def check_earlier_coarse(start: Start) -> None:
    """Raises ConfigurationError when a run continues that an earlier version began, which left
    out rows that this one would learn from, and the settings do not allow it."""
    before = start.resumed
    if before is None or COARSE in flatten(before.config):
        return
    asks = start.config.loss.asks(realigned=start.teacher.realigned)
    if asks.coarse and COARSE not in start.config.checkpoint.allow_changed:
        raise ConfigurationError(
            "the checkpoint is of an earlier version, which left coarse rows out of the loss",
            where=COARSE,
            fix='set it to "mask", or name it in checkpoint.allow_changed',
        )


def limits(start: Start) -> str:
    """Raises ConfigurationError when a request of the run would exceed a limit of the
    teacher."""
    config, link = start.config, start.teacher
    top_k = config.loss.asks(realigned=link.realigned).top_k
    explicit = config.loss.student_top_k
    longest = longest_response(config, start.evaluates)
    link.check_fits(
        top_k=top_k,
        explicit=explicit,
        longest_prompt=config.data.max_prompt_tokens,
        longest_response=longest,
    )
    asked = [f"K {top_k} of {link.info.max_top_k}"] if top_k or not explicit else []
    if explicit:
        asked.append(f"{explicit} of the student's ids of {link.limits.max_explicit_ids}")
    asked.append(f"{config.data.max_prompt_tokens + longest} tokens of {link.info.max_length}")
    return ", ".join(asked)
