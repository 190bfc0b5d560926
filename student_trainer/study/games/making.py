"""One model of the laboratory of text games: trained, measured, and kept in the cache."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from teacher_proto.errors import LsmError
from teacher_proto.types import TextPrompt

from student_trainer.data.digest import prompt_identity
from student_trainer.data.rendering import PromptReader
from student_trainer.environments.environments import Environments
from student_trainer.quickstart.cache import Note, cache_dir, ensure
from student_trainer.rollout.base import PromptItem
from student_trainer.rollout.turns.acting import Acting
from student_trainer.rollout.turns.engine import respond
from student_trainer.rollout.turns.template import TurnTemplate
from student_trainer.settings.data import DataSettings
from student_trainer.settings.evaluation import VerificationSettings
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.student.model import load_student
from student_trainer.study.games.recipe import STUDENT_BARS, TEACHER_BARS, Run, digest
from student_trainer.study.games.tokenizer import make_tokenizer, words_of
from student_trainer.study.games.training import batches, example, train, transcripts
from student_trainer.study.games.transcripts import texts
from student_trainer.study.lab.network import Sizes, make_network, parameters, save
from student_trainer.tasks.base import Row, Split
from student_trainer.tasks.judgement import told
from student_trainer.tasks.textworld import TextWorldTask

NAME = "games"
NOTE_EVERY = 100
# Tokens of the longest game, what it says included.
LONGEST = 640


def folder_of(run: Run, task: TextWorldTask) -> Path:
    """Where the cache has the model of a run."""
    return cache_dir() / NAME / f"{run.name}-{digest(run, task)}"


def make(run: Run, task: TextWorldTask, note: Note, *, bars: bool = True) -> Path:
    """Trains the model of a run, if the cache does not have it.

    Args:
        task: whose training games it learns from, and on whose held-out games it is measured.
        bars: refuse a model that misses one.

    Returns:
        Its folder. The manifest there has its figures.

    Raises:
        LsmError: the model misses a bar; nothing is kept of it.
        ConfigurationError: textworld is not installed, or the folder in the cache is damaged.
    """
    return ensure(folder_of(run, task), lambda folder: _fill(run, task, note, bars, folder))


def rows_of(task: TextWorldTask, split: Split) -> list[Row]:
    """The rows of a split."""
    return [row for _, row in task.prompts(split, _no_datasets)]


def _no_datasets(*arguments: object, **named: object) -> Any:
    raise AssertionError("text games read no dataset")


def _fill(run: Run, task: TextWorldTask, note: Note, bars: bool, folder: Path) -> Mapping[str, Any]:
    schedule = run.schedule
    # Games and transcripts are those of all runs, so that all models have one tokenizer.
    played = transcripts(task, rows_of(task, "train"), schedule.plays, schedule.slip)
    tokenizer = make_tokenizer(words_of(text for one in played for text in texts(one)))
    examples = [example(one, tokenizer, schedule.told) for one in played]
    network = make_network(Sizes(), tokenizer, run.seed)
    started = time.monotonic()
    rows = batches(examples, schedule, tokenizer.pad_token_id, run.seed)
    updates = 0
    for updates, loss in train(network, rows, schedule):
        if updates % NOTE_EVERY == 0:
            note(f"{run.name}: {updates} updates, loss {loss:.3f}")
        if updates == run.stop:
            break
    seconds = round(time.monotonic() - started, 1)
    save(network, tokenizer, folder)
    figures = measure(folder, task, rows_of(task, "held_out")[: run.measured])
    note(f"{run.name}: " + ", ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    if bars:
        _refuse_below_bars(run, figures)
    return {
        "role": run.role,
        "run": asdict(run),
        "task": task.model_dump(mode="json"),
        "updates": updates,
        "seconds": seconds,
        "parameters": parameters(network),
        "vocabulary": len(tokenizer),
        "figures": figures,
    }


def measure(folder: Path, task: TextWorldTask, rows: Sequence[Row]) -> dict[str, float]:
    """Plays each row's game once with a model, as a run does, at temperature 1 and top-p .9.

    Returns:
        won: share of games; turns: commands of a game; refused: share of them that the game did
        not understand; tokens: of a game, those of the model alone.

    Raises:
        LsmError: a game could not be played or judged.
    """
    student = load_student(StudentSettings(model=str(folder), device="cpu"))
    found = Environments({NAME: task}, VerificationSettings())
    try:
        reader = PromptReader(student.tokenizer, DataSettings(), "")
        acting = Acting(student, found, TurnTemplate(reader, student.terminators))
        prompts = [_prompt(student.tokenizer, row) for row in rows]
        settings = RolloutSettings(group_size=1, batch_size=64, max_new_tokens=LONGEST)
        rollouts = respond(student, prompts, settings, acting, seed=0, step=0)
    finally:
        found.close()
    judged = [one.episode.told for one in rollouts if one.episode is not None]
    if lost := told(judged):
        raise LsmError(
            f"games could not be played, and without them the figures would be others: "
            f"{'; '.join(lost)}",
            where="study games",
            fix="mend what it says, and start it again",
        )
    return {
        "won": float(np.mean([one.right for one in judged])),
        "turns": float(np.mean([one.values["episode_turns"] for one in judged])),
        "refused": float(np.mean([one.values["refused"] for one in judged])),
        "tokens": float(np.mean([one.own_length for one in rollouts])),
    }


def _prompt(tokenizer: Any, row: Row) -> PromptItem:
    ids = np.array(tokenizer.encode(row["prompt"], add_special_tokens=False), np.int32)
    return PromptItem(prompt_identity(ids), ids, TextPrompt(row["prompt"]), task=NAME, row=row)


def _refuse_below_bars(run: Run, figures: Mapping[str, float]) -> None:
    bars = TEACHER_BARS if run.role == "teacher" else STUDENT_BARS
    missed = [
        f"{name} is {figures[name]:.3g} and not from {least:g} to {most:g}"
        for name, (least, most) in bars.items()
        if not least <= figures[name] <= most
    ]
    if missed:
        raise LsmError(
            f"the model is not fit to be a {run.role}: {', '.join(missed)}",
            where=f"study games, {run.name}",
            fix="take another --seed",
        )
