"""How one of a run's teachers reads its prompts, and which of them it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings_keys import flatten
from teacher_proto.types import TOO_LONG, Refusal

from student_trainer.data.progress import told
from student_trainer.rollout.base import PromptItem
from student_trainer.settings.data import DataSettings
from student_trainer.startup.start import Start
from student_trainer.teacher.link import TeacherLink
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


@dataclass
class Reader:
    """How one of the teachers reads its prompts.

    Attributes:
        renderings: how its readings differ from the student's.
        judged: of its train prompts, by their places among all.
    """

    start: Start
    name: str
    link: TeacherLink
    renderings: Renderings
    judged: Judgement = field(default_factory=Judgement)

    @classmethod
    def of(cls, start: Start, name: str) -> Reader:
        link = start.teachers[name]
        return cls(start, name, link, link.reading.renderings())

    @property
    def asks(self) -> bool:
        """Whether the teacher renders prompts itself and can be asked how."""
        return self.link.renders and self.link.limits.max_render_prompts is not None

    @property
    def room(self) -> int:
        """Tokens of the longest sequence that the teacher takes."""
        return min(self.link.info.max_length, self.link.limits.max_request_tokens)

    def warn(self, sentence: str) -> None:
        self.start.warn(self.start.about(self.name, sentence))

    def train(self) -> str:
        """Reads the train prompts into ``start.prompts``; says what it found.

        Raises:
            ConfigurationError, LsmError: as ``readings``.
        """
        start, prompts = self.start, self.start.prompts
        its = [
            p.read_by_teacher for p in (*prompts.train, *prompts.held_out) if p.teacher == self.name
        ]
        for note in self.link.reading.notes(its, prompts.arguments):
            self.warn(note)
        if self.link.renders and not self.asks:
            self.warn(
                "the service is of an earlier version and cannot be asked how it reads the "
                "prompts: a response to one that it refuses is left out when its turn comes "
                "(refused_rollouts)"
            )
        found = self.read(prompts.train, "train prompts")
        if not found:
            return "not asked" if self.link.renders else "the teacher reads the student's tokens"
        check_earlier_reading(start, self.link, self.renderings)
        scored = start.config.scoring.scored(start.config.rollout.max_new_tokens)
        self.judged = judge(found, self.room - scored)
        settle(self.judged, prompts.train, len(found), start.config.data)
        train = list(prompts.train)
        for place, one in found.items():
            train[place] = train[place].as_read(one.item)
        left_out = prompts.left_out | self.judged.left_out
        start.prompts = replace(prompts, train=train, left_out=left_out)
        used = len(found) - len(self.judged.left_out)
        return (
            f"the teacher reads {used} train prompts, the longest has {self.judged.longest} of its "
            "tokens"
        )

    def read(self, prompts: Sequence[PromptItem], what: str) -> dict[int, AtTeacher]:
        """How the teacher reads those of the prompts that are its own, by their places; counted
        in ``renderings``. Of a teacher that cannot be asked, what it alone reads, where that is
        known: in the student's tokens, as many as there may be of those that both read."""
        its = {
            place: prompt.read_by_teacher
            for place, prompt in enumerate(prompts)
            if prompt.teacher == self.name and (self.asks or prompt.for_teacher is not None)
        }
        if not its:
            return {}
        if not self.asks:
            return {} if self.link.realigned else {p: in_tokens(one) for p, one in its.items()}
        asked = self.link.reading.read(list(its.values()))
        every = told(asked, self.start.about(self.name, f"{what} are read by the teacher"),
                     total=len(its))  # fmt: skip
        found = dict(zip(its, every, strict=True))
        for one in found.values():
            self.renderings.add(one)
        return found

    def say_the_rest(self) -> None:
        """Warns of differences between the readings, and of what is left out."""
        prompts = self.start.prompts.train
        for note in self.renderings.notes(own=True) if self.asks else ():
            self.warn(note)
        many = sum(prompt.teacher == self.name for prompt in prompts)
        for verb, whys in (
            ("refuses", self.judged.refused),
            ("reads as too long", self.judged.too_long),
        ):
            if whys:
                self.warn(
                    f"left out {len(whys)} of {many} train prompts, which the teacher {verb}: "
                    f"{some_of(whys, prompts)}"
                )
        if self.asks:
            self.warn_of_long_responses(self.room)

    def warn_of_long_responses(self, room: int) -> None:
        """Warns when responses would not fit that become longer in the teacher's tokens as the
        prompts do. With one tokenizer they are as long on both sides."""
        if not self.link.realigned:
            return
        found = self.judged
        ratio = found.teacher_tokens / max(found.student_tokens, 1)
        config = self.start.config
        longest = config.scoring.scored(config.rollout.max_new_tokens)
        if ratio > 1 and found.longest + ratio * longest > room:
            self.warn(
                f"the prompts are {ratio:.2f} times as long in the teacher's tokens: were "
                f"responses of {longest} tokens (rollout.max_new_tokens) so too, those to the "
                f"longest prompts would be more than its {room}; what is too long is left out "
                "(refused_rollouts)"
            )


def in_tokens(prompt: PromptItem) -> AtTeacher:
    """A prompt of which the teacher reads the student's tokens."""
    if len(prompt.token_ids):
        return AtTeacher(prompt, len(prompt.token_ids))
    refusal = Refusal(
        "NO_RENDERING", "the student's chat template, which it is read by, refuses it", "", ""
    )
    return AtTeacher(prompt, None, refusal)


def judge(every: Mapping[int, AtTeacher], most: int) -> Judgement:
    """Which prompts can be scored.

    Args:
        every: how the teacher reads each, by its place.
        most: tokens of the teacher that a prompt may have, so that a response fits after it.
    """
    found = Judgement()
    for place, one in every.items():
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


def settle(
    found: Judgement, prompts: Sequence[PromptItem], asked: int, settings: DataSettings
) -> None:
    """Raises ConfigurationError for prompts that cannot be scored, where the settings make
    that an error. The first few are named.

    Args:
        asked: how many of the prompts the teacher was asked to read.
    """
    for what, whys, key, chosen in (
        ("the teacher refuses", found.refused, "data.refused", settings.refused),
        ("the teacher reads as too long", found.too_long, "data.over_long", settings.over_long),
    ):
        if whys and chosen == "error":
            first = prompts[min(whys)]
            raise ConfigurationError(
                f"{what} {len(whys)} of {asked} prompts: {some_of(whys, prompts)}",
                where=first.place or f"prompt {first.prompt_id}",
                fix=f'mend these rows, or set {key} = "drop" to leave them out',
            )


def check_earlier_reading(start: Start, link: TeacherLink, found: Renderings) -> None:
    """Raises ConfigurationError when a run continues that an earlier version began, whose
    teacher read prompts that this one's does not, and the settings do not allow it."""
    before = start.resumed
    if before is None or start.config.teachers is not None:
        return  # earlier versions had one teacher
    if "teacher.prompt" in flatten(before.config):
        return
    if not found.changed or "teacher.prompt" in start.config.checkpoint.allow_changed:
        return
    same = not link.realigned
    raise ConfigurationError(
        "the checkpoint is of an earlier version, whose teacher read "
        + ("the student's tokens" if same else "thinking that its own template opens")
        + f", and {found.changed} train prompts would be read otherwise now",
        where="teacher.prompt",
        fix=('set it to "student", or ' if same else "start another run, or ")
        + "name teacher.prompt in checkpoint.allow_changed",
    )


def some_of(whys: dict[int, str], prompts: Sequence[PromptItem]) -> str:
    """The first few, with their places and reasons."""
    shown = [
        f"{prompts[place].place or prompts[place].prompt_id} ({why})"
        for place, why in sorted(whys.items())[:SHOWN]
    ]
    return "; ".join(shown) + ("; ..." if len(whys) > SHOWN else "")
