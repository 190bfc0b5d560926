"""What an environment is, and a task whose responses are episodes in one: the student writes a
turn, the environment answers, the student writes the next.

    class Guess(Environment):
        def __init__(self, number: int) -> None:
            self._number, self._found = number, False

        def act(self, turn: Turn) -> Observation:
            self._found = turn.text.strip() == str(self._number)
            if self._found:
                return Observation(done=True)
            return Observation([{"role": "user", "content": "No. Try another number."}])

        def verdict(self) -> Verdict:
            return Verdict(float(self._found))


    class Guessing(ActingTask):
        def prompts(self, split: Split, read: Read) -> Iterator[PlacedRow]:
            draw = random.Random(f"guess {split}")
            first = 0 if split == "train" else 100
            for game in range(first, first + 100):
                text = f"Guess a number from {10 * game} to {10 * game + 9}."
                ask = [{"role": "user", "content": text}]
                number = 10 * game + draw.randrange(10)
                yield f"game {game}", {"messages": ask, "number": number}

        def environment(self, row: Row) -> Environment:
            return Guess(row["number"])

Environments run in processes of their own (docs/environments.md), many episodes in each. The first
observation is a part of the prompt: ``prompts`` writes it into the row, and ``environment`` makes
the state that it shows. Rows that differ are other episodes, also where the student reads the same
of them. An environment is deterministic: after the same row and the same turns it
gives the same observations, because the episodes of a process that has died are rebuilt by making
their turns again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from teacher_proto.program.settings_types import Positive, PositiveInt

from student_trainer.tasks.base import Row, Task, Verdict

Role = Literal["user", "tool"]
ROLES: tuple[Role, ...] = ("user", "tool")
NAMES = ("name", "tool_call_id")
# Characters of the longest name of a message, and of the longest content that a task may ask for.
LONGEST_NAME, LONGEST_CONTENT = 64, 1 << 20


@dataclass(frozen=True)
class Turn:
    """What the student wrote in one turn. Any text: empty, cut in a word, with NUL characters.

    Attributes:
        text: without special tokens, and without the token that ended it.
        raw: with special tokens as the tokenizer writes them, without the token that ended it:
            some chat templates mark calls of tools with special tokens.
        tool_format: name of the form in which the student's chat template writes calls of tools
            (tasks/calling/formats.py); empty where it has none or the task gives no tools.
        opened: whether the turn begins inside of the student's thinking, because the generation
            prompt ends with ``<think>``.
    """

    text: str
    raw: str = ""
    tool_format: str = ""
    opened: bool = False


@dataclass(frozen=True)
class Observation:
    """What the environment answers.

    Attributes:
        messages: the turns of the conversation that follow the student's: each has ``role``,
            ``user`` or ``tool``, and ``content``, a text; a ``tool`` message may have ``name`` and
            ``tool_call_id``.
            Where the prompt is a text and no conversation, their contents follow as they are.
            At least one unless ``done``; none where it is ``done``, since nobody would read it.
        done: whether the episode is over.
    """

    messages: Sequence[Mapping[str, str]] = ()
    done: bool = False

    def __post_init__(self) -> None:
        if not self.done and not self.messages:
            raise ValueError("an observation has messages unless the episode is done")
        for message in self.messages:
            if message.get("role") not in ROLES:
                raise ValueError(f"a message's role is user or tool, and not {message.get('role')}")
            if not all(isinstance(message.get(name, ""), str) for name in ("content", *NAMES)):
                raise TypeError("a message's content, name and tool_call_id are texts")
            if "content" not in message:
                raise ValueError("a message of an observation has no content")
            if any(len(message.get(name, "")) > LONGEST_NAME for name in NAMES):
                raise ValueError(f"a message's name has more than {LONGEST_NAME} characters")


class Environment:
    """One episode. Its state when it is made is what the row's prompt shows."""

    def act(self, turn: Turn) -> Observation:
        """Takes the student's turn. Depends on the row, the settings and the turns before it
        alone. What it raises ends the episode, which counts as failed and not right."""
        raise NotImplementedError

    def verdict(self) -> Verdict:
        """Judges the episode, once it is over: because it is done, or because a limit ended it.
        ``values`` are metrics of the task (``task_value_NAME``)."""
        raise NotImplementedError

    def close(self) -> None:
        """Gives back what the episode has opened."""


class ActingTask(Task):
    """A task whose responses are episodes.

    Attributes:
        acts: whether the responses to its prompts are written turn by turn.
        observed_as: the roles that its observations have.
        calls_tools: whether it reads calls of tools in the form of the student's chat template,
            which is then to have one.
        episode_bytes: of memory that an open episode takes at least, for a warning at the start;
            0 where that is little.
    """

    acts: ClassVar[bool] = True
    observed_as: ClassVar[tuple[Role, ...]] = ("user",)
    calls_tools: ClassVar[bool] = False
    episode_bytes: ClassVar[int] = 0

    turns: PositiveInt = Field(
        default=16,
        description="Turns of the student in the longest episode; after the last one the episode "
        "is over and is judged as it stands.",
    )
    turn_tokens: PositiveInt | None = Field(
        default=None,
        description="Tokens of the longest turn; unset, what is left of the whole response "
        "(`rollout.max_new_tokens`, in evaluations `evaluation.max_new_tokens`).",
    )
    at_turn_limit: Literal["end", "act"] = Field(
        default="end",
        description="What follows a turn that is cut at `turn_tokens`: the episode is over "
        "(`end`), or the environment gets the cut turn, and the chat template's end of a turn is "
        "written for the student, unscored (`act`).",
    )
    turn_seconds: Positive = Field(
        default=5.0,
        description="Seconds that the environment may take for a turn; then the episode is over, "
        "and counts as not right.",
    )
    observation_characters: Annotated[int, Field(ge=1, le=LONGEST_CONTENT)] = Field(
        default=8192,
        description="Characters of the longest message of an observation; a longer one is cut, "
        "says so in its text, and is counted.",
    )

    def environment(self, row: Row) -> Environment:
        """The episode of a row. Called in a process of the environments.

        Args:
            row: the prompt's, as ``prompts`` gave it.
        """
        raise NotImplementedError

    def verify(self, row: Row, response: str) -> Verdict:
        """Nobody calls it: an episode is judged by its environment."""
        raise NotImplementedError
