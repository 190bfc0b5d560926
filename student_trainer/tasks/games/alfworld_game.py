"""Games of the package alfworld, from its data. The only file that imports alfworld."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredTWEnv
from alfworld.info import ALFWORLD_DATA

# Folder of each of alfworld's splits in its data, and the setting of its loader that names it.
FOLDERS = {
    "train": ("train", "data_path"),
    "eval_in_distribution": ("valid_seen", "eval_id_data_path"),
    "eval_out_of_distribution": ("valid_unseen", "eval_ood_data_path"),
}
GAMES = "json_2.1.1"
# The line with which alfworld greets.
GREETING = "-= Welcome to TextWorld, ALFRED! =-"
# Environments of games that are over. Every game that is open needs a planner of its own, which
# cannot be unloaded: where several are open, that crashes the process.
_FREE: list[Any] = []
# Commands that are understood anyway and told of by what follows other commands.
HELP = "help"


def data_folder() -> Path:
    """Where alfworld keeps its data unless it is told otherwise."""
    return Path(ALFWORLD_DATA)


def game_files(data: Path, split: str, task_types: Collection[int]) -> list[Path]:
    """The games of a split that alfworld's own loader finds, sorted.

    Args:
        split: as alfworld calls it, a key of FOLDERS.
        task_types: numbers of alfworld's kinds of tasks, 1 to 6.
    """
    config = {
        "dataset": {
            **{name: str(data / GAMES / folder) for folder, name in FOLDERS.values()},
            "num_train_games": -1,
            "num_eval_games": -1,
        },
        "env": {"task_types": sorted(task_types), "goal_desc_human_anns_prob": 0},
    }
    # It prints what it finds.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = AlfredTWEnv(config, train_eval=split).game_files
    return sorted(Path(file) for file in found)


class AlfWorldGame:
    """A game that is being played, as ``Game`` of tasks/text_game.py says."""

    def __init__(self, file: Path) -> None:
        if _FREE:
            self._environment = _FREE.pop()
            self._environment.load(str(file))
        else:
            infos = textworld.EnvInfos(won=True, lost=True, admissible_commands=True)
            wrappers = [AlfredDemangler(shuffle=False)]
            self._environment = textworld.start(str(file), infos, wrappers=wrappers)
        self._state: Any = self._environment.reset()

    def begin(self) -> str:
        """What there is, and the task."""
        return str(self._state.feedback).replace(GREETING, "").strip()

    def commands(self) -> list[str]:
        """What the game admits now, without ``help``."""
        return [command for command in self.understood() if command != HELP]

    def understood(self) -> list[str]:
        """What the game admits now, sorted."""
        return list(self._state.admissible_commands)

    def step(self, command: str) -> str:
        """Takes a command; returns what the player is told."""
        self._state, _, _ = self._environment.step(command)
        return str(self._state.feedback).strip()

    @property
    def won(self) -> bool:
        return bool(self._state.won)

    @property
    def lost(self) -> bool:
        return bool(self._state.lost)

    def close(self) -> None:
        """Leaves the planner to another game."""
        _FREE.append(self._environment)
