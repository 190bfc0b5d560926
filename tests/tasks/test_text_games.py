"""Text games: what a player sees, what of a turn is the command, and games of TextWorld."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError
from teacher_proto.errors import ConfigurationError

from student_trainer.environments.environments import Environments
from student_trainer.environments.process import Observed
from student_trainer.settings.evaluation import VerificationSettings
from student_trainer.tasks import textworld as textworld_module
from student_trainer.tasks.environment import Turn
from student_trainer.tasks.games.scene import scene
from student_trainer.tasks.text_game import NOTHING
from student_trainer.tasks.textworld import TextWorldTask
from tests.tasks.tools import of_task

HOUSE = [
    ("at", ("P", "r_0")),
    ("at", ("c_0", "r_0")),
    ("at", ("c_1", "r_0")),
    ("at", ("s_0", "r_0")),
    ("at", ("o_3", "r_1")),
    ("open", ("c_0",)),
    ("in", ("o_0", "c_0")),
    ("locked", ("c_1",)),
    ("in", ("o_1", "c_1")),
    ("on", ("o_2", "s_0")),
    ("in", ("k_0", "I")),
    ("east_of", ("r_1", "r_0")),
    ("west_of", ("r_0", "r_1")),
    ("link", ("r_0", "d_0", "r_1")),
    ("link", ("r_1", "d_0", "r_0")),
    ("closed", ("d_0",)),
    ("north_of", ("r_2", "r_0")),
    ("south_of", ("r_0", "r_2")),
]
NAMES = {
    "r_0": "kitchen", "r_1": "cellar", "r_2": "attic", "c_0": "chest", "c_1": "safe",
    "s_0": "table", "o_0": "coin", "o_1": "ring", "o_2": "apple", "o_3": "map", "k_0": "key",
    "d_0": "oak door",
}  # fmt: skip


def test_a_scene_tells_what_is_seen_and_nothing_else() -> None:
    assert scene(HOUSE, NAMES) == (
        "You are in the kitchen. You see: chest (open, in it: coin), safe (locked), table (on it: "
        "apple). Exits: north; east through the oak door (closed). You carry: key."
    )
    alone = [("at", ("P", "r_0"))]
    assert scene(alone, NAMES) == (
        "You are in the kitchen. You see: nothing. Exits: none. You carry: nothing."
    )
    assert scene(HOUSE[::-1], NAMES) == scene(HOUSE, NAMES)


@pytest.mark.parametrize(
    ("extract", "text", "command"),
    [
        ("last_line", "I think.\n\n Go  North \n\n", "Go  North"),
        ("last_line", "", ""),
        ("last_line", " \n\t", ""),
        ("tag", "a <action>x</action> b <action> go east</action> c", "go east"),
        ("tag", "<action>go", ""),
        ("tag", "go</action>", ""),
        ("whole", " a\nb ", "a\nb"),
        ("last_line", "\0\ud800", "\0\ud800"),
    ],
)
def test_the_command_of_a_turn(extract: Any, text: str, command: str) -> None:
    assert TextWorldTask(extract=extract).command_of(text) == command


@pytest.mark.parametrize(
    ("extract", "says"),
    [
        ("last_line", "on the last line of what you write"),
        ("tag", "between <action> and </action>"),
        ("whole", "one command and nothing else"),
    ],
)
def test_the_student_is_told_where_its_command_is_read(extract: Any, says: str) -> None:
    of = TextWorldTask(extract=extract)
    assert says in of.prompt_of("You are here.", [])["messages"][0]["content"]
    assert TextWorldTask.model_validate(of.model_dump(mode="json")) == of
    assert TextWorldTask(extract=extract, instruction="").instruction == ""
    own = "Write <action>COMMAND</action>."
    assert TextWorldTask(extract=extract, instruction=own).instruction == own


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rooms": 2, "quest_length": 3}, "from 3 to 11"),
        ({"rooms": 12, "quest_length": 3}, "from 3 to 11"),
        ({"game": "custom"}, "objects"),
        ({"objects": 3}, "objects"),
        ({"mode": "hard"}, "mode belongs to"),
        ({"extract": "tag", "instruction": "Play."}, "instruction does not name <action>"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)):
        TextWorldTask(**settings)


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    textworld_module._package.cache_clear()
    monkeypatch.setitem(sys.modules, "student_trainer.tasks.games.textworld_game", None)
    monkeypatch.delattr("student_trainer.tasks.games.textworld_game", raising=False)
    with pytest.raises(ConfigurationError) as refused:
        TextWorldTask().prepare()
    assert "textworld" in refused.value.what
    assert "[textworld]" in refused.value.fix
    assert refused.value.where == "tasks"


def task(**settings: Any) -> TextWorldTask:
    pytest.importorskip("textworld", reason="textworld is not installed")
    return TextWorldTask(**{"games_to_train": 4, "games_held_out": 3, **settings})


def rows(of: TextWorldTask, split: Any = "train") -> list[Any]:
    def read(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("games read no dataset")

    return [row for _, row in of.prompts(split, read)]


GAMES = [
    {"game": "coin_collector", "rooms": 6},
    {"game": "treasure_hunter", "mode": "medium", "objective": "steps"},
    {"game": "custom", "objects": 6, "form": "text", "commands": "free"},
]


@pytest.mark.parametrize("settings", GAMES)
def test_every_game_is_won_by_its_walkthrough(settings: dict[str, Any]) -> None:
    of = task(**settings)
    for row in rows(of):
        episode: Any = of.environment(row)
        game = episode._game
        while not game.won:
            way = game.walkthrough()
            assert way
            observation = episode.act(Turn(f"I want to win.\n{way[0].upper()}"))
        assert observation.done
        verdict = episode.verdict()
        assert (verdict.score, dict(verdict.values)) == (
            1.0, {"refused": 0.0, "lost": 0.0},
        )  # fmt: skip


def test_held_out_games_are_no_training_games() -> None:
    of = task(games_to_train=12, games_held_out=6)
    train, held_out = rows(of), rows(of, "held_out")
    assert (len(train), len(held_out)) == (12, 6)
    assert len({row["content"] for row in (*train, *held_out)}) == 18
    more = task(games_to_train=13, games_held_out=6)
    assert rows(more, "held_out") == held_out
    assert rows(more)[:12] == train
    assert not {row["content"] for row in rows(task(seed=1))} & {row["content"] for row in train}


SAME = """
import json, sys
from student_trainer.tasks.textworld import TextWorldTask
of = TextWorldTask(**json.loads(sys.argv[1]))
print(json.dumps([row for split in ("train", "held_out") for _, row in of.prompts(split, None)]))
"""


def test_another_process_makes_the_same_games() -> None:
    settings = {"game": "treasure_hunter", "mode": "medium", "games_to_train": 3}
    of = task(**settings)
    done = subprocess.run(
        [sys.executable, "-c", SAME, json.dumps({**settings, "games_held_out": 3})],
        capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7", **_paths()},
    )  # fmt: skip
    assert json.loads(done.stdout) == rows(of) + rows(of, "held_out")


def _paths() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(path for path in sys.path if path)}


def test_what_the_game_does_not_understand_changes_nothing_and_is_counted() -> None:
    of = task(form="text", instruction="")
    row = rows(of)[0]
    assert row["prompt"].endswith("\n>")
    episode = of.environment(row)
    for text in ("", "dance", "go up\0", "x" * 100_000, "\ud800"):
        (message,) = episode.act(Turn(text)).messages
        assert message["role"] == "user"
        assert message["content"].startswith(f"\n{NOTHING}\nCommands: ")
        assert message["content"].endswith("\n>")
        assert len(message["content"]) < 200
    (message,) = episode.act(Turn("look")).messages
    seen = message["content"].strip().splitlines()[0]
    assert seen in row["prompt"]
    verdict = episode.verdict()
    assert verdict.score == 0.0
    assert verdict.values["refused"] == pytest.approx(5 / 6)


def test_the_wrong_thing_loses_a_treasure_hunt() -> None:
    of = task(game="treasure_hunter", rooms=4, quest_length=1)
    for row in rows(of):
        episode: Any = of.environment(row)
        game = episode._game
        while not (game.won or game.lost):
            (right,) = [game.walkthrough()[-1]]
            taken = [one for one in game.commands() if one.startswith("take") and one != right]
            moves = [one for one in game.commands() if one.startswith("go")]
            step = taken[0] if taken else moves[episode._turns % len(moves)]
            episode.act(Turn(step))
            if episode._turns > 40:
                break
        if game.lost:
            assert episode.verdict().score == 0.0
            assert episode.verdict().values["lost"] == 1.0
            return
    pytest.fail("no game was lost")


def test_a_game_that_is_another_than_before_is_not_played() -> None:
    of = task()
    row = {**rows(of)[0], "content": "0" * 16}
    with pytest.raises(ValueError, match="another game of this seed"):
        of.environment(row)


def test_more_games_than_there_are_is_an_error() -> None:
    of = task(game="coin_collector", rooms=1, quest_length=1, games_to_train=100_000)
    with pytest.raises(ConfigurationError, match="no other one of the next"):
        rows(of)


def test_games_are_played_in_the_process_of_environments() -> None:
    of = task()
    played = Environments({"games": of}, VerificationSettings())
    try:
        each = [(row, played.begin(of_task("games", row))) for row in rows(of, "held_out")]
        ways = [of.begun(row).walkthrough() for row, _ in each]
        assert ways
        while any(ways):
            for (_, episode), way in zip(each, ways, strict=True):
                if way:
                    answer = played.act(episode, Turn(way.pop(0))).result()
                    assert isinstance(answer, Observed), answer
                    assert answer.observation.done == (not way)
        for _, episode in each:
            assert played.judge(episode).result().right
        wrong = played.begin(of_task("games", {**each[0][0], "content": "0"}))
        failed = played.act(wrong, Turn("look")).result()
        assert not isinstance(failed, Observed)
        assert (failed.failure, "another game" in failed.reason) == ("raised", True)
    finally:
        played.close()
