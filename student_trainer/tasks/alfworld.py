"""Household games of ALFWorld, from the data that its own tool downloads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.distribution import install_command
from teacher_proto.program.settings_types import Count, Positive

from student_trainer.tasks.base import PlacedRow, Read, Row, Split
from student_trainer.tasks.environment import Environment
from student_trainer.tasks.text_game import GameEpisode, GameTask

DOWNLOAD = "alfworld-download"
TaskType = Literal[1, 2, 3, 4, 5, 6]


class AlfWorldTask(GameTask):
    """Household games of the package alfworld: something is to be found, cleaned, heated, cooled
    or looked at, and put somewhere. An episode is right where that is done."""

    # Fast Downward copies its library into a file for each game.
    file_bytes: ClassVar[int] = 64 << 20
    # The planner's library, which is there once for each game, and what it knows.
    episode_bytes: ClassVar[int] = 40 << 20

    kind: Literal["alfworld"] = "alfworld"
    turns: PositiveInt = Field(
        default=30,
        description="Commands of the longest episode; after the last one it is over, and is judged "
        "as it stands.",
    )
    turn_seconds: Positive = Field(
        default=30.0,
        description="Seconds that the game may take for a command, and to be opened for the first; "
        "then the episode is over, and counts as not right.",
    )
    data: Path | None = Field(
        default=None,
        description="Folder that `alfworld-download` has filled; unset, alfworld's own, which is "
        "`$ALFWORLD_DATA` or `~/.cache/alfworld`.",
    )
    held_out: Literal["eval_in_distribution", "eval_out_of_distribution"] = Field(
        default="eval_out_of_distribution",
        description="The split to evaluate on: rooms that the training games have, or others.",
    )
    task_types: tuple[TaskType, ...] = Field(
        default=(1, 2, 3, 4, 5, 6),
        min_length=1,
        description="Numbers of ALFWorld's kinds of tasks.",
    )
    games_to_train: PositiveInt = Field(
        default=300,
        description="Training games to take at most, drawn by `seed`. The start of a run opens "
        "each of them, which takes half a second or more.",
    )
    games_held_out: PositiveInt = Field(
        default=140, description="Games to evaluate on at most, drawn by `seed`."
    )
    seed: Count = Field(default=0, description="Which games are drawn, and in which order.")

    def prepare(self) -> None:
        """As ``Task.prepare``."""
        _package()

    def prompts(self, split: Split, read: Read) -> Iterator[PlacedRow]:
        """As ``Task.prompts``; a row also has ``game``, the path of the game's file in the data,
        so that rows are the same wherever the data is.

        Raises:
            ConfigurationError: alfworld or its data is not there, or a game cannot be opened.
        """
        named = "train" if split == "train" else self.held_out
        count = self.games_to_train if split == "train" else self.games_held_out
        files = self._files(named)
        random.Random(f"alfworld {split} {self.seed}").shuffle(files)
        for file in files[:count]:
            try:
                game = _package().AlfWorldGame(file)
            except Exception as error:  # of a damaged file, of any kind
                raise ConfigurationError(
                    f"alfworld cannot open the game: {type(error).__name__}: {error}",
                    where=str(file),
                    fix=f"download it again, by `{DOWNLOAD} --force`",
                ) from error
            prompt = self.prompt_of(game.begin(), game.commands())
            game.close()
            yield str(file), {**prompt, "game": file.relative_to(self._folder()).as_posix()}

    def environment(self, row: Row) -> Environment:
        """As ``ActingTask.environment``."""
        return GameEpisode(self, _package().AlfWorldGame(self._folder() / row["game"]))

    def for_a_process(self) -> AlfWorldTask:
        """As ``Task.for_a_process``: ``data`` may be from a variable of the environment."""
        return self.model_copy(update={"data": self._folder()})

    def _folder(self) -> Path:
        """The data, absolute."""
        folder: Path = (self.data or _package().data_folder()).absolute()
        return folder

    def _files(self, split: str) -> list[Path]:
        package = _package()
        data = self._folder()
        folder = data / package.GAMES / package.FOLDERS[split][0]
        fix = f"run `{DOWNLOAD} --data-dir {data}`, or set data of the task to where it was run for"
        if not folder.is_dir():
            raise ConfigurationError(
                f"the data of ALFWorld is not there: there is no folder {folder}",
                where="tasks",
                fix=fix,
            )
        found: list[Path] = package.game_files(data, split, self.task_types)
        if not found:
            raise ConfigurationError(
                f"no game of the task types {', '.join(map(str, self.task_types))} that can be "
                f"solved is in {folder}",
                where="tasks",
                fix=f"{fix}; or set other task_types",
            )
        return found


@lru_cache(maxsize=1)
def _package() -> Any:
    try:
        from student_trainer.tasks.games import alfworld_game
    except ImportError as error:
        raise ConfigurationError(
            f"tasks of the kind alfworld need the package alfworld: {error}",
            where="tasks",
            fix=f"{install_command('alfworld')} (it compiles C and C++: gcc and cmake have to be "
            f"there), then `{DOWNLOAD}`",
        ) from error
    return alfworld_game
