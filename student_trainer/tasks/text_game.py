"""What the tasks of text games share: the prompt, the command in a turn, and the episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from student_trainer.tasks.base import Verdict
from student_trainer.tasks.environment import ActingTask, Environment, Observation, Turn

BEGIN, END = "<action>", "</action>"
LAST_LINE = (
    "You play a text game. In each of your turns you give one command, on the last line of what "
    "you write; the game then tells you what you see."
)
# What the student is told unless the settings say it, for each `extract`.
INSTRUCTIONS = {
    "last_line": LAST_LINE,
    "tag": (
        f"You play a text game. In each of your turns you give one command, between {BEGIN} and "
        f"{END}; the game then tells you what you see."
    ),
    "whole": (
        "You play a text game. Each of your turns is one command and nothing else; the game then "
        "tells you what you see."
    ),
}
NOTHING = "Nothing happens."
# With what a prompt that is a text asks for a command.
ASKS = "\n>"


class Game(Protocol):
    """A game that is being played."""

    def begin(self) -> str:
        """What the player is told before the first command: what to reach, and what there is."""
        ...

    def commands(self) -> Sequence[str]:
        """What the game understands now and lists, in a fixed order."""
        ...

    def understood(self) -> Sequence[str]:
        """Everything that the game understands now."""
        ...

    def step(self, command: str) -> str:
        """Takes one of ``understood``; returns what the player is told."""
        ...

    @property
    def won(self) -> bool: ...

    @property
    def lost(self) -> bool: ...

    def close(self) -> None: ...


class GameTask(ActingTask):
    """A task whose episodes are text games. An episode is right where the game is won."""

    instruction: str = Field(
        default=LAST_LINE,
        description="Text before the game's own, in the prompt. The default is that of `extract = "
        '"last_line"`; the others have one of their own, which says where the command is read.',
    )
    form: Literal["chat", "text"] = Field(
        default="chat",
        description="Whether the game speaks in user's turns of a conversation, or the prompt is a "
        "text that is used as it is, without the chat template, to which the game's texts are "
        "added.",
    )
    commands: Literal["listed", "free"] = Field(
        default="listed",
        description="Whether what the game tells ends with the commands that it understands there. "
        "Any command that the game understands may be given either way.",
    )
    extract: Literal["last_line", "tag", "whole"] = Field(
        default="last_line",
        description="What of a turn is the command: its last line that is not empty, what stands "
        "in its last `<action>` and `</action>`, or all of it.",
    )

    @model_validator(mode="before")
    @classmethod
    def _told_where_the_command_is_read(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "instruction" in values:
            return values
        known = INSTRUCTIONS.get(str(values.get("extract", "last_line")))
        return values if known is None else {**values, "instruction": known}

    @model_validator(mode="after")
    def _names_the_tag(self) -> GameTask:
        if self.extract == "tag" and self.instruction and BEGIN not in self.instruction:
            raise ValueError(
                f'instruction does not name {BEGIN}, and extract = "tag" takes the command from '
                f"between {BEGIN} and {END}: name them there, leave instruction out, or set it to "
                '"" for a student that writes them untold'
            )
        return self

    def prompt_of(self, begin: str, commands: Sequence[str]) -> dict[str, Any]:
        """The part of a row that is the prompt, of a game's ``begin`` and ``commands``."""
        said = self.told(begin, commands)
        text = f"{self.instruction}\n\n{said}" if self.instruction else said
        if self.form == "text":
            return {"prompt": text}
        return {"messages": [{"role": "user", "content": text}]}

    def told(self, said: str, commands: Sequence[str]) -> str:
        """What the player is told, with the commands where they are listed."""
        if self.commands == "listed":
            said += f"\nCommands: {', '.join(commands)}."
        return said + ASKS if self.form == "text" else said

    def message(self, game: Game, said: str) -> Mapping[str, str]:
        """An observation. In a text it begins on a line of its own."""
        before = "\n" if self.form == "text" else ""
        return {"role": "user", "content": before + self.told(said, game.commands())}

    def command_of(self, text: str) -> str:
        """The command of a turn; empty where there is none."""
        if self.extract == "tag":
            end = text.rfind(END)
            begin = text.rfind(BEGIN, 0, max(end, 0))
            return text[begin + len(BEGIN) : end].strip() if 0 <= begin < end else ""
        lines = text.strip().splitlines() if self.extract == "last_line" else [text.strip()]
        return lines[-1].strip() if lines else ""


class GameEpisode(Environment):
    """A game played by a student. Commands are compared without regard to case and to how much
    white space is between words. What the game does not understand changes nothing.

    Its verdict is 1 where the game is won, else 0. Its values: ``refused``, the share of its turns
    whose command the game did not understand, and ``lost``, 1 where the game is lost.
    """

    def __init__(self, task: GameTask, game: Game) -> None:
        self._task, self._game = task, game
        self._turns = self._refused = 0

    def act(self, turn: Turn) -> Observation:
        """As ``Environment.act``."""
        known = {_compared(command): command for command in self._game.understood()}
        command = known.get(_compared(self._task.command_of(turn.text)))
        self._turns += 1
        if command is None:
            self._refused += 1
            said = NOTHING
        else:
            said = self._game.step(command)
            if self._game.won or self._game.lost:
                return Observation(done=True)
        return Observation([self._task.message(self._game, said)])

    def verdict(self) -> Verdict:
        """As ``Environment.verdict``."""
        values = {
            "refused": self._refused / max(1, self._turns),
            "lost": float(self._game.lost),
        }
        return Verdict(float(self._game.won), values=values)

    def close(self) -> None:
        """As ``Environment.close``."""
        self._game.close()


def _compared(command: str) -> str:
    return " ".join(command.split()).casefold()
