"""The laboratory of text games: transcripts, their tokens, and two models that know nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto.errors import LsmError

from student_trainer.cli import main
from student_trainer.study.games import recipe
from student_trainer.study.games.making import measure
from student_trainer.study.games.tokenizer import make_tokenizer, words_of
from student_trainer.study.games.training import Schedule, batches, example
from student_trainer.study.games.transcripts import Segment, play
from student_trainer.study.lab.network import Sizes, make_network, save
from student_trainer.tasks.environment import Turn
from student_trainer.tasks.textworld import TextWorldTask

SMALL = Sizes(layers=1, hidden=32, inner=64, heads=2, positions=1024)
TEXTS = ("Take the coin.\nYou see: coin, bacon (open). Exits: north; east.\n>", " take coin")


def test_a_word_after_a_space_is_one_token_and_any_text_comes_back() -> None:
    tokenizer = make_tokenizer(words_of(TEXTS))
    for text in (*TEXTS, "\nNothing happens, né 12?", ""):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
    for word in (" the", " coin", " bacon", " north"):
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1


def test_only_right_commands_weigh_one_and_batches_hold_every_example() -> None:
    tokenizer = make_tokenizer(words_of(TEXTS))
    made = example(
        [Segment("the\n>", 0, False), Segment(" take", 1, True), Segment(" coin", 0, True)],
        tokenizer,
        told=0.25,
    )
    assert tokenizer.decode(made.ids) == "the\n> take<|end|> coin<|end|>"
    assert made.weights.tolist() == [0.25, 0.25, 0.25, 1, 1, 0, 0]
    every = [example([Segment(" coin" * n, 1, True)], tokenizer, 0) for n in range(1, 6)]
    rows = list(batches(every, Schedule(steps=5, tokens=9), tokenizer.pad_token_id, 0))
    assert len(rows) == 5
    lengths = sorted(int(n) for batch in rows[:2] for n in (batch.weights > 0).sum(1))
    assert set(lengths) <= {2, 3, 4, 5, 6}
    assert all((batch.weights > 0).sum() >= 9 for batch in rows)
    assert all(
        np.isin(batch.ids[batch.weights == 0], tokenizer.pad_token_id).all() for batch in rows
    )


def task() -> TextWorldTask:
    pytest.importorskip("textworld", reason="textworld is not installed")
    return recipe.TASK.model_copy(update={"games_to_train": 4, "games_held_out": 2})


def rows_of(of: TextWorldTask) -> list[Any]:
    def read(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("games read no dataset")

    return [row for _, row in of.prompts("train", read)]


def test_a_transcript_is_what_a_run_would_hold_and_goes_on_after_a_mistake() -> None:
    of = task()
    wrong = 0
    for row in rows_of(of):
        straight = play(of, row, random.Random(0), 0.0)
        assert all(segment.weight == 1 for segment in straight if segment.command)
        assert sum(segment.command for segment in straight) == of.quest_length
        found = play(of, row, random.Random(1), 0.4)
        wrong += sum(segment.command and segment.weight == 0 for segment in found)
        episode = of.environment(row)
        assert found[0].text == row["prompt"]
        for place in range(1, len(found), 2):
            assert found[place].command
            observation = episode.act(Turn(found[place].text))
            if place + 1 < len(found):
                (message,) = observation.messages
                assert message["content"] == found[place + 1].text
        assert observation.done or sum(one.command for one in found) == of.turns
    assert wrong > 0


def test_the_digest_of_a_model_is_of_all_that_decides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, run = task(), recipe.runs(0, 1)[0]
    before = recipe.digest(run, of)
    assert recipe.digest(run, of) == before
    assert recipe.digest(recipe.runs(1, 1)[0], of) != before
    copy = tmp_path / "package"
    for name in recipe.DECIDING:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((recipe.PACKAGE / name).read_bytes())
    monkeypatch.setattr(recipe, "PACKAGE", copy)
    assert recipe.digest(run, of) == before
    for name in ("tasks/games/scene.py", "study/lab/network.py"):
        written = (copy / name).read_bytes()
        (copy / name).write_bytes(written + b"\n")
        assert recipe.digest(run, of) != before
        (copy / name).write_bytes(written)
    monkeypatch.setattr("student_trainer.tasks.games.textworld_game.VERSION", "0")
    assert recipe.digest(run, of) != before


def test_a_game_that_cannot_be_played_is_an_error_and_no_figure(tmp_path: Path) -> None:
    of = task()
    (row, *_) = rows_of(of)
    tokenizer = make_tokenizer(words_of([row["prompt"]]))
    save(make_network(SMALL, tokenizer, 0), tokenizer, tmp_path)
    with pytest.raises(LsmError, match=r"games could not be played.*another game of this seed"):
        measure(tmp_path, of, [{**row, "content": "of another game"}])


def test_the_command_makes_a_teacher_and_a_student_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task()
    monkeypatch.setenv("LSM_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    assert main(["study", "games", "--quick", "--out", str(out)]) == 0
    document = json.loads((out / "games.json").read_text())
    assert document["refused"] == {}
    models = document["models"]
    assert {name: model["role"] for name, model in models.items()} == {
        "games-teacher": "teacher",
        "games-student-1": "student",
    }
    assert [model["updates"] for model in models.values()] == [4, 2]
    for name, model in models.items():
        assert (out / name / "model.safetensors").exists()
        assert 0 <= model["figures"]["won"] <= 1
        assert model["figures"]["turns"] >= 1
    capsys.readouterr()
    assert main(["study", "games", "--quick", "--out", str(out)]) == 0
    assert capsys.readouterr().err == ""
    assert json.loads((out / "games.json").read_text())["models"] == models
