"""Text games that TextWorld makes on the spot, from seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.distribution import install_command
from teacher_proto.program.settings_types import Count, PositiveInt

from student_trainer.tasks.base import PlacedRow, Read, Row, Split
from student_trainer.tasks.environment import Environment
from student_trainer.tasks.text_game import GameEpisode, GameTask

if TYPE_CHECKING:
    from student_trainer.tasks.games.textworld_game import Making, TextWorldGame

# Numbers of neighbouring seeds share no game's seed.
APART, SEEDS = 1_000_003, 2**31
# So many seeds in a row without a game that is new, and there are no more.
IN_VAIN = 200


class TextWorldTask(GameTask):
    """Text games of the package textworld, made on the spot from seeds: rooms to walk through and
    things to find. An episode is right where the game's quest is done."""

    kind: Literal["textworld"] = "textworld"
    game: Literal["coin_collector", "treasure_hunter", "custom"] = Field(
        default="coin_collector",
        description="Which of TextWorld's makers makes the games: a coin at the end of a chain of "
        "rooms with dead ends beside it (`coin_collector`), one thing to take and another that "
        "loses the game (`treasure_hunter`), or things, doors, containers and a quest of any kind "
        "(`custom`).",
    )
    mode: Literal["easy", "medium", "hard"] = Field(
        default="easy",
        description="Of `treasure_hunter`: empty rooms (`easy`), doors and containers that may be "
        "closed (`medium`), or locked, too (`hard`).",
    )
    rooms: PositiveInt = Field(default=5, description="Rooms of a game.")
    quest_length: PositiveInt = Field(
        default=3,
        description="Commands of the shortest way to win that TextWorld plans; of "
        "`coin_collector`, the rooms of the chain, of which the last has the coin.",
    )
    objects: PositiveInt | None = Field(
        default=None,
        description="Things of a game; only of `custom`, which needs it.",
    )
    objective: Literal["goal", "steps"] = Field(
        default="goal",
        description="Whether the game says at its beginning what to reach, or also every step of "
        "the way, in TextWorld's words.",
    )
    games_to_train: PositiveInt = Field(
        default=300, description="Games to train on; a run goes over them again and again."
    )
    games_held_out: Count = Field(
        default=100, description="Other games, to evaluate on; 0 for none."
    )
    seed: Count = Field(
        default=0,
        description="Seed of the games. It is not that of the run, so that runs with several seeds "
        "have the same games.",
    )

    @model_validator(mode="after")
    def _fits(self) -> TextWorldTask:
        chain = self.quest_length
        if self.game == "coin_collector" and not chain <= self.rooms <= 3 * chain + 2:
            raise ValueError(
                f"rooms is {self.rooms}, and with quest_length = {chain} a coin_collector has from "
                f"{chain} to {3 * chain + 2}: change one of them"
            )
        if (self.game == "custom") != (self.objects is not None):
            raise ValueError("objects belongs to game = custom, which needs it: set both or none")
        if self.game != "treasure_hunter" and self.mode != "easy":
            raise ValueError("mode belongs to game = treasure_hunter: remove it, or set game")
        return self

    def prepare(self) -> None:
        """As ``Task.prepare``; makes one game, the first of which takes seconds."""
        _package().make_game(self.making, _first_seed(self.seed))

    def prompts(self, split: Split, read: Read) -> Iterator[PlacedRow]:
        """As ``Task.prompts``; a row also has ``game``, the game's seed, and ``content``, a digest
        of the game. Held-out games come first in the order of seeds, so that they stay when more
        are trained on. No two games are the same."""
        held_out = self.games_held_out
        games = _games(self.making, self.seed, held_out + self.games_to_train)
        for game in games[:held_out] if split == "held_out" else games[held_out:]:
            prompt = self.prompt_of(game.begin, game.commands)
            yield f"game {game.seed}", {**prompt, "game": game.seed, "content": game.content}

    def environment(self, row: Row) -> Environment:
        """As ``ActingTask.environment``; raises as ``begun``."""
        return GameEpisode(self, self.begun(row))

    def begun(self, row: Row) -> TextWorldGame:
        """The game of a row at its beginning.

        Raises:
            ValueError: textworld makes another game of the row's seed than it did before.
        """
        package = _package()
        game = package.make_game(self.making, int(row["game"]))
        if game is None or package.content_of(game) != row["content"]:
            raise ValueError("textworld makes another game of this seed than it did before")
        return package.TextWorldGame(game)  # type: ignore[no-any-return]

    @property
    def making(self) -> Making:
        """How its games are made."""
        return _package().Making(  # type: ignore[no-any-return]
            game=self.game,
            mode=self.mode,
            rooms=self.rooms,
            quest_length=self.quest_length,
            objects=self.objects or 0,
            objective=self.objective,
        )

    @property
    def version_of_textworld(self) -> str:
        """Another version may make other games of the same seeds."""
        return str(_package().VERSION)


def _first_seed(seed: int) -> int:
    return seed * APART % SEEDS


@dataclass(frozen=True)
class Known:
    """What is kept of a game: its seed, the digest of its content, and what its player is told at
    the beginning."""

    seed: int
    content: str
    begin: str
    commands: tuple[str, ...]


@lru_cache(maxsize=8)
def _games(making: Making, seed: int, count: int) -> tuple[Known, ...]:
    """So many games that differ.

    Raises:
        ConfigurationError: there are not so many.
    """
    package = _package()
    found: dict[str, Known] = {}
    in_vain = 0
    place = _first_seed(seed)
    while len(found) < count:
        game = package.make_game(making, place)
        content = None if game is None else package.content_of(game)
        if content is not None and content not in found:
            begun = package.TextWorldGame(game)
            found[content] = Known(place, content, begun.begin(), tuple(begun.commands()))
            in_vain = 0
        else:
            in_vain += 1
        if in_vain >= IN_VAIN:
            raise ConfigurationError(
                f"TextWorld made {len(found)} games, and no other one of the next {IN_VAIN} seeds; "
                f"games_to_train and games_held_out are {count} together",
                where="tasks",
                fix="take fewer games, a shorter quest, or more rooms",
            )
        place = (place + 1) % SEEDS
    return tuple(found.values())


@lru_cache(maxsize=1)
def _package() -> Any:
    try:
        from student_trainer.tasks.games import textworld_game
    except ImportError as error:
        raise ConfigurationError(
            f"tasks of the kind textworld need the package textworld: {error}",
            where="tasks",
            fix=f"{install_command('textworld')} (it compiles C: gcc has to be there)",
        ) from error
    return textworld_game
