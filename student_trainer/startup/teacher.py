"""Steps that ask the teachers' services: are they there, do they fit, are they the same as
before?"""

from __future__ import annotations

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings_keys import flatten

from student_trainer.run.resume import COARSE, check_prompts, check_teachers
from student_trainer.settings.train import section_of
from student_trainer.startup.inputs import longest_scored
from student_trainer.startup.start import Start
from student_trainer.teacher.connection import check_reachable
from student_trainer.teacher.teachers import Teachers


def teacher(start: Start) -> str:
    """Raises what ``check_reachable`` raises: nobody answers, or refuses."""
    config, found = start.config, {}
    for name, settings in config.named_teachers.items():
        found[name] = check_reachable(settings, config.run.name, key=section_of(config, name))
    start.infos = found
    return "; ".join(
        start.about(name, f"{settings.name} answers at {settings.address}")
        for name, settings in config.named_teachers.items()
    )


def resume(start: Start) -> str:
    """Whether prompts and teachers are those that the checkpoint was made with.

    Raises:
        ConfigurationError, ContractMismatchError: as ``check_prompts`` and
            ``check_teachers``.
    """
    if start.resumed is None:
        return "nothing to continue from"
    allowed = start.config.checkpoint.allow_changed
    check_prompts(start.resumed, start.prompts.digest, allowed)
    identities = {name: info.identity for name, info in start.infos.items()}
    for unknown in check_teachers(start.resumed, identities):
        start.warn(unknown)
    teachers = "teacher are" if start.config.teachers is None else "teachers are"
    return f"the prompts and the {teachers} those of step {start.resumed.step}"


def tokenizer(start: Start) -> str:
    """Connects to the teachers, and registers the student's tokenizer where it is another. Warns
    where the student can draw tokens that a teacher has no row for.

    Raises:
        LsmError: as ``TeacherLink``, ``Loss.check_realigned`` and ``check_earlier_coarse``.
    """
    config = start.config
    start.teachers = start.stack.enter_context(Teachers.connect(config, start.student))
    if start.teachers.realigned:
        config.loss.check_realigned()
    check_earlier_coarse(start)
    drawn = start.student.drawn_below
    for name, link in start.teachers.items():
        theirs = link.info.vocabulary_size
        if not link.realigned and drawn > theirs:
            start.warn(
                start.about(
                    name,
                    f"the student's tokens go up to id {drawn - 1} and the teacher has rows for "
                    f"those up to {theirs - 1}: it refuses prompts and responses with one beyond, "
                    "which are left out (refused_rollouts, dropped_rows)",
                )
            )
    return "; ".join(
        start.about(name, link.describe_tokenizers()) for name, link in start.teachers.items()
    )


def check_earlier_coarse(start: Start) -> None:
    """Raises ConfigurationError when a run continues that an earlier version began, which left
    out rows that this one would learn from, and the settings do not allow it."""
    before = start.resumed
    if before is None or COARSE in flatten(before.config):
        return
    coarse = any(
        start.config.rows_asked(name, realigned=link.realigned).coarse
        for name, link in start.teachers.items()
    )
    if coarse and COARSE not in start.config.checkpoint.allow_changed:
        raise ConfigurationError(
            "the checkpoint is of an earlier version, which left coarse rows out of the loss",
            where=COARSE,
            fix='set it to "mask", or name it in checkpoint.allow_changed',
        )


def limits(start: Start) -> str:
    """Raises ConfigurationError when a request of the run would exceed a limit of one of the
    teachers."""
    config = start.config
    explicit = config.loss.student_top_k
    longest = longest_scored(config, start.evaluates)
    found = []
    for name, link in start.teachers.items():
        top_k = config.rows_asked(name, realigned=link.realigned).top_k
        link.check_fits(
            top_k=top_k,
            explicit=explicit,
            longest_prompt=config.data.max_prompt_tokens,
            longest_response=longest,
            own_top_k=config.own_top_k(name) is not None,
        )
        asked = [f"K {top_k} of {link.info.max_top_k}"] if top_k or not explicit else []
        if explicit:
            asked.append(f"{explicit} of the student's ids of {link.limits.max_explicit_ids}")
        asked.append(f"{config.data.max_prompt_tokens + longest} tokens of {link.info.max_length}")
        found.append(start.about(name, ", ".join(asked)))
    return "; ".join(found)
