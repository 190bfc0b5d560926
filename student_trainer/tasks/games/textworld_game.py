"""Games of the package textworld: made from a seed, and played by its Python engine. The only file
that imports textworld."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Literal

import textworld.generator
from textworld import GameMaker
from textworld.challenges.tw_treasure_hunter import treasure_hunter
from textworld.generator.chaining import QuestGenerationError
from textworld.generator.data import KnowledgeBase
from textworld.generator.game import Event, Game, GameOptions, GameProgression, Quest
from textworld.generator.graph_networks import reverse_direction
from textworld.generator.inform7 import Inform7Game

from student_trainer.tasks.games.scene import scene

VERSION = version("textworld")
Kind = Literal["coin_collector", "treasure_hunter", "custom"]
Mode = Literal["easy", "medium", "hard"]
# Commands that tell what every observation tells anyway: understood, and not listed.
TELLING = ("look", "inventory", "examine ")
COIN = "coin"
# Games that a process keeps.
KEPT = 512


@dataclass(frozen=True)
class Making:
    """What games are made; the settings of the task say what each means."""

    game: Kind
    mode: Mode
    rooms: int
    quest_length: int
    objects: int
    objective: Literal["goal", "steps"]


@lru_cache(maxsize=KEPT)
def make_game(making: Making, seed: int) -> Game | None:
    """The game of a seed, always the same; None where TextWorld finds no quest for it."""
    options = GameOptions()
    options.seeds = seed
    options.nb_rooms, options.nb_objects = making.rooms, making.objects
    options.quest_length = making.quest_length
    options.grammar.only_last_action = making.objective == "goal"
    options.grammar.allowed_variables_numbering = True
    options.kb = _knowledge(making.game)
    try:
        if making.game == "coin_collector":
            return _coin_collector(options)
        if making.game == "treasure_hunter":
            return treasure_hunter.make_game(making.mode, options)
        return textworld.generator.make_game(options)
    except QuestGenerationError:
        return None


@lru_cache(maxsize=3)
def _knowledge(game: Kind) -> KnowledgeBase:
    """The rules of games, which take half a second to read."""
    if game == "treasure_hunter":
        return KnowledgeBase.load(treasure_hunter.KB_PATH)
    return KnowledgeBase.load()


def _coin_collector(options: GameOptions) -> Game:
    """A chain of rooms with the player at one end and a coin at the other, and dead ends beside
    it: TextWorld's coin collector, whose own maker compiles every game for an interpreter."""
    draw = options.rngs["map"]
    maker = GameMaker(options)
    chain: list[Any] = []
    way: list[str] = []
    while len(chain) < options.quest_length:
        room = maker.new_room()
        if chain:
            way.append(_connect(maker, chain[-1], room, draw))
        chain.append(room)
    for _ in range(options.nb_rooms - len(chain)):
        open_ended = [room for room in chain if _free(room)]
        _connect(maker, open_ended[draw.randint(len(open_ended))], maker.new_room(), draw)
    maker.set_player(chain[0])
    coin = maker.new(type="o", name=COIN)
    chain[-1].add(coin)
    has_coin = maker.new_fact("in", coin, maker.inventory)
    actions = _actions(maker, [f"go/{direction}" for direction in way] + ["take"])
    maker.quests = [Quest(win_events=[Event(actions=actions, conditions={has_coin})])]
    return maker.build()


def _free(room: Any) -> list[str]:
    return sorted(name for name, way in room.exits.items() if way.dest is None)


def _connect(maker: GameMaker, here: Any, there: Any, draw: Any) -> str:
    """Joins two rooms by a free exit of the first, which is returned."""
    direction = str(draw.choice(_free(here)))
    maker.connect(here.exits[direction], there.exits[reverse_direction(direction)])
    return direction


def _actions(maker: GameMaker, names: Sequence[str]) -> list[Any]:
    """The actions with these names, one after the other from the start of the game."""
    knowledge = maker.options.kb
    state = maker.state.copy()
    found = []
    for name in names:
        possible = state.all_applicable_actions(
            knowledge.rules.values(), knowledge.types.constants_mapping
        )
        found.append(next(action for action in possible if action.name == name))
        state.apply(found[-1])
    return found


def content_of(game: Game) -> str:
    """A digest of a game's rooms and things, their places and names. Games with the same one
    differ in the words of the objective at most."""
    facts = sorted(str(fact) for fact in game.world.facts)
    names = {name: info.name for name, info in sorted(game.infos.items())}
    told = json.dumps([facts, names], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


class TextWorldGame:
    """A game that is being played, as ``Game`` of tasks/text_game.py says."""

    def __init__(self, game: Game) -> None:
        self._game = game
        self._progress = GameProgression(game)
        self._told = Inform7Game(game)

    def begin(self) -> str:
        """The objective, and what the player sees."""
        return f"{self._game.objective}\n{self._scene()}"

    def commands(self) -> list[str]:
        """What changes something, sorted."""
        return [one for one in self.understood() if not one.startswith(TELLING)]

    def understood(self) -> list[str]:
        """Everything that the rules allow now, sorted."""
        return sorted(self._actions())

    def step(self, command: str) -> str:
        """Takes a command; returns what the player sees."""
        self._progress.update(self._actions()[command])
        return self._scene()

    def walkthrough(self) -> list[str] | None:
        """Commands that win the game from here, as TextWorld knows them; None where it knows
        none."""
        policy = self._progress.winning_policy
        return None if policy is None else list(self._told.gen_commands_from_actions(policy))

    @property
    def won(self) -> bool:
        return bool(self._progress.completed)

    @property
    def lost(self) -> bool:
        return bool(self._progress.failed)

    def close(self) -> None:
        """Nothing is open."""

    def _actions(self) -> dict[str, Any]:
        """The actions that are possible, by their commands."""
        actions = self._progress.valid_actions
        commands = self._told.gen_commands_from_actions(actions)
        return dict(zip(commands, actions, strict=True))

    def _scene(self) -> str:
        facts = [
            (fact.name, tuple(argument.name for argument in fact.arguments))
            for fact in self._progress.state.facts
        ]
        return scene(facts, {name: info.name for name, info in self._game.infos.items()})
