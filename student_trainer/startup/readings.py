"""The step that asks a teacher which renders prompts itself how it reads them, and what is done
with those that it cannot read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings_keys import flatten
from teacher_proto.types import TOO_LONG

from student_trainer.data import PromptSets
from student_trainer.data.progress import told
from student_trainer.evaluation import evaluated_prompts
from student_trainer.prompt_needs import check_prompts
from student_trainer.rollout.base import PromptItem
from student_trainer.settings.data import DataSettings
from student_trainer.startup.start import Start
from student_trainer.teacher.prompts import AtTeacher
from student_trainer.teacher.renderings import Renderings

SHOWN = 3


@dataclass
class Judgement:
    """Which of the prompts that were asked for cannot be scored.

    Attributes:
        refused, too_long: by the place among those that were asked for, why.
        longest: tokens of the longest prompt that can be.
        student_tokens, teacher_tokens: of all of them that can be.
    """

    refused: dict[int, str] = field(default_factory=dict)
    too_long: dict[int, str] = field(default_factory=dict)
    longest: int = 0
    student_tokens: int = 0
    teacher_tokens: int = 0

    @property
    def left_out(self) -> frozenset[int]:
        return frozenset((*self.refused, *self.too_long))


def readings(start: Start) -> str:
    """Asks the teacher to read every prompt, leaves out those that it cannot, and says how its
    readings differ from the student's.

    Raises:
        ConfigurationError: it refuses a prompt or reads it as too long, and the settings
            make that an error; too few prompts are left; or the checkpoint is of an earlier
            version, whose teacher read other prompts.
        LsmError: as ``TeacherClient.render``.
    """
    link, prompts, config = start.teacher, start.prompts, start.config
    for note in link.reading.notes([*prompts.train, *prompts.held_out], prompts.arguments):
        start.warn(note)
    if not link.renders:
        return "the teacher reads the student's tokens"
    if link.limits.max_render_prompts is None:
        start.warn(
            "the service is of an earlier version and cannot be asked how it reads the prompts: "
            "a response to one that it refuses is left out when its turn comes (refused_rollouts)"
        )
        return "not asked"
    room = min(link.info.max_length, link.limits.max_request_tokens)
    found = link.reading.renderings()
    every = _read(start, prompts.train, "train prompts", found)
    check_earlier_reading(start, found)
    train = judge(every, room - config.rollout.max_new_tokens)
    settle(train, prompts.train, config.data)
    check_something_is_left(train.left_out, prompts)
    held_out = _usable_held_out(start, room - config.evaluation.max_new_tokens, found)
    start.prompts = replace(
        prompts, train=[one.item for one in every], left_out=train.left_out, held_out=held_out
    )
    check_prompts(config, start.prompts)
    for note in found.notes(own=True):
        start.warn(note)
    for name, whys in (("refuses", train.refused), ("reads as too long", train.too_long)):
        if whys:
            start.warn(
                f"left out {len(whys)} of {len(prompts.train)} train prompts, which the teacher "
                f"{name}: {_some(whys, prompts.train)}"
            )
    _warn_of_long_responses(start, train, room)
    used = len(prompts.train) - len(train.left_out)
    return f"the teacher reads {used} train prompts, the longest has {train.longest} of its tokens"


def judge(every: Iterable[AtTeacher], most: int) -> Judgement:
    """Which prompts can be scored.

    Args:
        most: tokens of the teacher that a prompt may have, so that a response fits after it.
    """
    found = Judgement()
    for place, one in enumerate(every):
        refusal = one.refusal
        if refusal is not None and refusal.reason != TOO_LONG:
            found.refused[place] = refusal.what
        elif refusal is not None or one.tokens is None:
            found.too_long[place] = refusal.what if refusal else "its length is not known"
        elif one.tokens > most:
            found.too_long[place] = f"{one.tokens} tokens of the teacher, at most {most} fit"
        else:
            found.longest = max(found.longest, one.tokens)
            found.teacher_tokens += one.tokens
            found.student_tokens += len(one.item.token_ids)
    return found


def settle(found: Judgement, prompts: Sequence[PromptItem], settings: DataSettings) -> None:
    """Raises ConfigurationError for prompts that cannot be scored, where the settings make
    that an error. The first few are named."""
    for what, whys, key, chosen in (
        ("the teacher refuses", found.refused, "data.refused", settings.refused),
        ("the teacher reads as too long", found.too_long, "data.over_long", settings.over_long),
    ):
        if whys and chosen == "error":
            first = prompts[min(whys)]
            raise ConfigurationError(
                f"{what} {len(whys)} of {len(prompts)} prompts: {_some(whys, prompts)}",
                where=first.place or f"prompt {first.prompt_id}",
                fix=f'mend these rows, or set {key} = "drop" to leave them out',
            )


def check_something_is_left(left_out: AbstractSet[int], prompts: PromptSets) -> None:
    """Raises ConfigurationError when every prompt is left out, or every one of a file that has
    a share of its own."""
    used = {p.file for place, p in enumerate(prompts.train) if place not in left_out}
    there = {p.file for p in prompts.train} if prompts.shares else {min(used, default=0)}
    if missing := sorted(there - used):
        raise ConfigurationError(
            "the teacher can read none of its prompts",
            where=f"data.train[{missing[0]}]" if prompts.shares else "data.train",
            fix="use prompts that its chat template takes, or leave the file out",
        )


def check_earlier_reading(start: Start, found: Renderings) -> None:
    """Raises ConfigurationError when a run continues that an earlier version began, whose
    teacher read prompts that this one's does not, and the settings do not allow it."""
    before = start.resumed
    if before is None or "teacher.prompt" in flatten(before.config):
        return
    if not found.changed or "teacher.prompt" in start.config.checkpoint.allow_changed:
        return
    same = not start.teacher.realigned
    raise ConfigurationError(
        "the checkpoint is of an earlier version, whose teacher read "
        + ("the student's tokens" if same else "thinking that its own template opens")
        + f", and {found.changed} train prompts would be read otherwise now",
        where="teacher.prompt",
        fix=('set it to "student", or ' if same else "start another run, or ")
        + "name teacher.prompt in checkpoint.allow_changed",
    )


def _usable_held_out(start: Start, most: int, renderings: Renderings) -> list[PromptItem]:
    """The held-out prompts without those that cannot be scored, as far as they are evaluated
    on; the prompts after these are not asked for."""
    settings, waiting = start.config.evaluation, list(start.prompts.held_out)
    usable: list[PromptItem] = []
    wanted = len(evaluated_prompts(waiting, settings))
    while waiting and len(usable) < wanted:
        some, waiting = waiting[:wanted], waiting[wanted:]
        every = _read(start, some, "held-out prompts", renderings)
        found = judge(every, most)
        settle(found, some, start.config.data)
        if found.left_out:
            start.warn(
                f"left out {len(found.left_out)} held-out prompts, which the teacher cannot read: "
                f"{_some({**found.refused, **found.too_long}, some)}"
            )
        usable += [one.item for place, one in enumerate(every) if place not in found.left_out]
    return usable + waiting


def _read(
    start: Start, prompts: Sequence[PromptItem], what: str, renderings: Renderings
) -> list[AtTeacher]:
    """How the teacher reads these prompts, in order; counted in ``renderings``."""
    asked = start.teacher.reading.read(prompts)
    every = list(told(asked, f"{what} are read by the teacher", total=len(prompts)))
    for one in every:
        renderings.add(one)
    return every


def _warn_of_long_responses(start: Start, found: Judgement, room: int) -> None:
    """Warns when responses would not fit that become longer in the teacher's tokens as the
    prompts do. With one tokenizer they are as long on both sides."""
    if not start.teacher.realigned:
        return
    ratio = found.teacher_tokens / max(found.student_tokens, 1)
    longest = start.config.rollout.max_new_tokens
    if ratio > 1 and found.longest + ratio * longest > room:
        start.warn(
            f"the prompts are {ratio:.2f} times as long in the teacher's tokens: were responses of "
            f"{longest} tokens (rollout.max_new_tokens) so too, those to the longest prompts would "
            f"be more than its {room}; what is too long is left out (refused_rollouts)"
        )


def _some(whys: dict[int, str], prompts: Sequence[PromptItem]) -> str:
    """The first few, with their places and reasons."""
    shown = [
        f"{prompts[place].place or prompts[place].prompt_id} ({why})"
        for place, why in sorted(whys.items())[:SHOWN]
    ]
    return "; ".join(shown) + ("; ..." if len(whys) > SHOWN else "")
