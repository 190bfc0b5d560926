"""The step that asks teachers which render prompts themselves how they read them, and what is
done with those that they cannot read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from teacher_proto.errors import ConfigurationError

from student_trainer.data import PromptSets
from student_trainer.evaluation import evaluated_prompts
from student_trainer.prompt_needs import check_prompts
from student_trainer.rollout.base import PromptItem
from student_trainer.startup.reader import Reader, judge, settle, some_of
from student_trainer.startup.start import Start


def readings(start: Start) -> str:
    """Asks the teachers to read their prompts, leaves out those that they cannot, and says how
    their readings differ from the student's.

    Raises:
        ConfigurationError: a teacher refuses a prompt or reads it as too long, and the settings
            make that an error; too few prompts are left; or the checkpoint is of an earlier
            version, whose teacher read other prompts.
        LsmError: as ``TeacherClient.render``.
    """
    readers = [Reader.of(start, name) for name in start.teachers]
    said = [reader.train() for reader in readers]
    check_something_is_left(start.prompts)
    held_out = _usable_held_out(start, {reader.name: reader for reader in readers})
    start.prompts = replace(start.prompts, held_out=held_out)
    check_prompts(start.config, start.prompts)
    for reader in readers:
        reader.say_the_rest()
    return "; ".join(start.about(r.name, one) for r, one in zip(readers, said, strict=True))


def check_something_is_left(prompts: PromptSets) -> None:
    """Raises ConfigurationError when every train prompt is left out, or every one of a file that
    has a share of its own, or every one of a teacher."""
    kept = [p for place, p in enumerate(prompts.train) if place not in prompts.left_out]
    used = {p.file for p in kept}
    there = {p.file for p in prompts.train} if prompts.shares else {min(used, default=0)}
    if missing := sorted(there - used):
        task = next((p.task for p in prompts.train if p.file == missing[0]), "")
        of_file = f"data.train[{missing[0]}]" if prompts.shares else "data.train"
        raise ConfigurationError(
            "the teacher can read none of its prompts",
            where=f"tasks.{task}" if task else of_file,
            fix="use prompts that its chat template takes, or leave "
            f"{'the task' if task else 'the file'} out",
        )
    scoring = {p.teacher for p in kept}
    for name in dict.fromkeys(p.teacher for p in prompts.train):
        if name not in scoring:
            raise ConfigurationError(
                f"teacher {name} can read none of the prompts that name it",
                where=f"teachers.{name}",
                fix="use prompts that its chat template takes, or leave the teacher out",
            )


def _usable_held_out(start: Start, readers: Mapping[str, Reader]) -> list[PromptItem]:
    """The held-out prompts without those that cannot be scored, as far as they are evaluated
    on; the prompts after these are not asked for."""
    config, waiting = start.config, list(start.prompts.held_out)
    usable: list[PromptItem] = []
    wanted = len(evaluated_prompts(waiting, config.evaluation))
    while waiting and len(usable) < wanted:
        some, waiting = waiting[:wanted], waiting[wanted:]
        left_out: set[int] = set()
        for reader in readers.values():
            every = reader.read(some, "held-out prompts")
            found = judge(every, reader.room - config.evaluation.max_new_tokens)
            settle(found, some, len(every), config.data)
            if found.left_out:
                reader.warn(
                    f"left out {len(found.left_out)} held-out prompts, which the teacher cannot "
                    f"read: {some_of({**found.refused, **found.too_long}, some)}"
                )
            left_out |= found.left_out
            for place, one in every.items():
                some[place] = some[place].as_read(one.item)
        usable += [item for place, item in enumerate(some) if place not in left_out]
    return usable + waiting
