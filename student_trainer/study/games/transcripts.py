"""Transcripts of games that are played by TextWorld's own walkthroughs, with wrong commands put in.

TextWorld knows a way to win from everywhere in a game. A transcript follows it, but for some
commands that are drawn at random: those are no targets, and what follows them is the way to win
from where they lead. So a model knows what to do after a mistake.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from student_trainer.tasks.base import Row
from student_trainer.tasks.environment import Turn
from student_trainer.tasks.text_game import GameEpisode
from student_trainer.tasks.textworld import TextWorldTask

if TYPE_CHECKING:
    from student_trainer.tasks.games.textworld_game import TextWorldGame


@dataclass(frozen=True)
class Segment:
    """A part of a transcript.

    Attributes:
        text: of a command without the token that ends a turn.
        weight: of its tokens as targets; 0 for what the game says and for wrong commands.
        command: whether the player wrote it.
    """

    text: str
    weight: float
    command: bool


def play(task: TextWorldTask, row: Row, draw: random.Random, slip: float) -> list[Segment]:
    """A transcript of the game of a row, whose prompt is a text; it ends where the game is won or
    lost, or after ``task.turns`` commands.

    Args:
        slip: probability that a command is drawn from those that the game lists, and is wrong
            unless it is the walkthrough's by chance.
    """
    game, episode = _begun(task, row)
    segments = [Segment(row["prompt"], 0.0, command=False)]
    for _ in range(task.turns):
        way = game.walkthrough()
        if not way:
            break
        slips = draw.random() < slip
        command = draw.choice(game.commands()) if slips else way[0]
        right = command == way[0]
        segments.append(Segment(" " + command, float(right), command=True))
        observation = episode.act(Turn(" " + command))
        if observation.done:
            break
        told = "".join(message["content"] for message in observation.messages)
        segments.append(Segment(told, 0.0, command=False))
    return segments


def _begun(task: TextWorldTask, row: Row) -> tuple[TextWorldGame, GameEpisode]:
    game = task.begun(row)
    return game, GameEpisode(task, game)


def texts(segments: Sequence[Segment]) -> list[str]:
    """The texts of a transcript."""
    return [segment.text for segment in segments]
