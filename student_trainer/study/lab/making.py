"""One run of the laboratory: trained, measured, and kept in the cache."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_proto.errors import LsmError

from student_trainer.quickstart.cache import Note, cache_dir, ensure
from student_trainer.study.lab import measuring
from student_trainer.study.lab.language.task import LabTask
from student_trainer.study.lab.language.tokenizers import WordIds, make_tokenizer
from student_trainer.study.lab.network import make_network, parameters, save
from student_trainer.study.lab.recipe import STUDENT_BARS, TASKS, TEACHER_BARS, Run, digest
from student_trainer.study.lab.training import train

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from student_trainer.student.model import Student

NOTE_EVERY = 200
# Seeds of prompts and draws that measure a finished model, and that look at an early one.
MEASURE, LOOK = 1, 2


def folders(run: Run) -> dict[str, Path]:
    """Name of each model of a run -> its folder in the cache."""
    return {name: cache_dir() / "lab" / f"{name}-{digest(run)}" for name, _ in run.models()}


def make(run: Run, note: Note, *, bars: bool = True) -> dict[str, Path]:
    """Trains the models of a run that the cache does not have.

    Args:
        bars: refuse a model that misses one.

    Returns:
        As ``folders``. The manifest of each has its figures.

    Raises:
        LsmError: a model misses a bar; nothing is kept of it.
        ConfigurationError: a folder of the cache is damaged.
    """
    kept = folders(run)
    if all(folder.exists() for folder in kept.values()):
        for folder in kept.values():
            ensure(folder, lambda work: {})
        return kept
    task = TASKS[run.tasks[0]]
    tokenizer = make_tokenizer(run.digits, task.numbers)
    network = make_network(run.sizes, tokenizer, run.seed)
    model = Model(network, tokenizer)
    waiting = list(run.models())
    started = time.monotonic()
    for step, loss in train(network, task, WordIds(tokenizer), run.schedule, run.seed):
        seconds = time.monotonic() - started
        if step % NOTE_EVERY == 0:
            note(f"{run.name}: {step} updates, loss {loss:.3f}, {seconds:.0f} s")
        while waiting and _is_due(run, waiting[0][1], step, model):
            name, tasks = waiting.pop(0)
            facts = {"role": run.role, "run": asdict(run), "updates": step, "seconds": seconds}
            ensure(kept[name], partial(_fill, name, run, tasks, model, facts, note, bars))
        if not waiting:
            return kept
    raise LsmError(
        f"none of its {run.schedule.steps} updates made a student of it",
        where=f"study lab, {waiting[0][0]}",
        fix="take another --seed",
    )


@dataclass(frozen=True)
class Model:
    """A network in training, with its tokenizer."""

    network: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast


def _is_due(run: Run, tasks: tuple[str, ...], step: int, model: Model) -> bool:
    """Whether a model is to be kept after this update: a teacher after the last, a student at
    the first look that finds it good enough."""
    looks = run.looks
    if looks is None:
        return step == run.schedule.steps
    if step < looks.first or (step - looks.first) % looks.every:
        return False
    (task,) = (TASKS[name] for name in tasks)
    with tempfile.TemporaryDirectory() as scratch:
        save(model.network, model.tokenizer, Path(scratch))
        student = measuring.load(Path(scratch))
    rows = measuring.draw_rows(task, looks.prompts, LOOK)
    rollouts = measuring.respond(student, task, rows, LOOK)
    return measuring.verified(student, task, rows, rollouts)["accuracy"] >= looks.least


def _fill(
    name: str,
    run: Run,
    tasks: tuple[str, ...],
    model: Model,
    facts: Mapping[str, Any],
    note: Note,
    bars: bool,
    folder: Path,
) -> Mapping[str, Any]:
    """Saves a model and measures it. Raises LsmError where it misses a bar."""
    save(model.network, model.tokenizer, folder)
    student = measuring.load(folder)
    figures = {one: _figures(student, TASKS[one], run.measured) for one in tasks}
    note(f"{name}: {_told(figures)}")
    if bars:
        refuse_below_bars(name, run, figures)
    return {
        **facts,
        "parameters": parameters(model.network),
        "vocabulary": student.vocabulary_size,
        "figures": figures,
    }


def _figures(student: Student, task: LabTask, prompts: int) -> dict[str, float]:
    rows = measuring.draw_rows(task, prompts, MEASURE)
    rollouts = measuring.respond(student, task, rows, MEASURE)
    return {
        **measuring.verified(student, task, rows, rollouts),
        **measuring.spread(student, rollouts),
        "after_slips": measuring.after_slips(student, task, prompts, MEASURE),
    }


def missed(run: Run, figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The bars that a model misses, in words."""
    bars = TEACHER_BARS if run.looks is None else STUDENT_BARS
    return [
        f"{figure} {values[figure]:.3f} on {task} is not within {least:g} and {most:g}"
        for task, values in figures.items()
        for figure, (least, most) in bars.items()
        if not least <= values[figure] <= most
    ]


def refuse_below_bars(name: str, run: Run, figures: Mapping[str, Mapping[str, float]]) -> None:
    """Raises LsmError where ``missed`` says something."""
    if found := missed(run, figures):
        raise LsmError(
            f"it is not a {run.role}: {'; '.join(found)}",
            where=f"study lab, {name}",
            fix="take another --seed",
        )


def _told(figures: Mapping[str, Mapping[str, float]]) -> str:
    return "; ".join(
        f"{task} " + ", ".join(f"{figure} {value:.3g}" for figure, value in values.items())
        for task, values in figures.items()
    )
