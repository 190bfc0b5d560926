"""One run of the laboratory: trained, measured, and kept in the cache."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_proto.errors import LsmError

from student_trainer.quickstart.cache import Note, cache_dir, ensure
from student_trainer.study.lab import measuring
from student_trainer.study.lab.language.task import LabTask
from student_trainer.study.lab.language.tokenizer import WordIds, make_tokenizer
from student_trainer.study.lab.network import make_network, parameters, save
from student_trainer.study.lab.recipe import (
    STUDENT_BARS,
    TASKS,
    TEACHER_BARS,
    Looks,
    Run,
    digest,
)
from student_trainer.study.lab.training import train

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from student_trainer.student.model import Student

NOTE_EVERY = 200
# Seeds of prompts and draws that measure a finished model, and that look at an early one.
MEASURE, LOOK = 1, 2


@dataclass(frozen=True)
class Model:
    """A network in training, with its tokenizer."""

    network: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast


def folder_of(run: Run) -> Path:
    """Where the cache has the model of a run."""
    return cache_dir() / "lab" / f"{run.name}-{digest(run)}"


def make(run: Run, note: Note, *, bars: bool = True) -> Path:
    """Trains the model of a run, if the cache does not have it.

    Args:
        bars: refuse a model that misses one.

    Returns:
        Its folder. The manifest there has its figures.

    Raises:
        LsmError: the model misses a bar; nothing is kept of it.
        ConfigurationError: the folder in the cache is damaged.
    """
    return ensure(folder_of(run), lambda folder: _fill(run, note, bars, folder))


def _fill(run: Run, note: Note, bars: bool, folder: Path) -> Mapping[str, Any]:
    """Trains, saves and measures a model. Raises LsmError where it misses a bar."""
    task = TASKS[run.task]
    tokenizer = make_tokenizer(task.numbers)
    model = Model(make_network(run.sizes, tokenizer, run.seed), tokenizer)
    started = time.monotonic()
    updates = _train(run, model, note)
    seconds = round(time.monotonic() - started, 1)
    save(model.network, tokenizer, folder)
    student = measuring.load(folder)
    figures = _figures(student, task, run.measured)
    note(f"{run.name}: " + ", ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    if bars:
        refuse_below_bars(run, figures)
    return {
        "role": run.role,
        "run": asdict(run),
        "updates": updates,
        "seconds": seconds,
        "parameters": parameters(model.network),
        "vocabulary": student.vocabulary_size,
        "figures": figures,
    }


def _train(run: Run, model: Model, note: Note) -> int:
    """Trains until the model is what the run is to leave; returns the updates that it took."""
    task, ids = TASKS[run.task], WordIds(model.tokenizer)
    started = time.monotonic()
    for step, loss in train(model.network, task, ids, run.schedule, run.seed):
        if step % NOTE_EVERY == 0:
            seconds = time.monotonic() - started
            note(f"{run.name}: {step} updates, loss {loss:.3f}, {seconds:.0f} s")
        if run.looks is not None and _is_student(run, run.looks, step, model, note):
            return step
    if run.looks is None:
        return run.schedule.steps
    raise LsmError(
        f"none of its {run.schedule.steps} updates made a student of it",
        where=f"study lab, {run.name}",
        fix="take another --seed",
    )


def _is_student(run: Run, looks: Looks, step: int, model: Model, note: Note) -> bool:
    """Whether a look is due after this update, and finds a model that is good enough."""
    if step < looks.first or (step - looks.first) % looks.every:
        return False
    task = TASKS[run.task]
    with tempfile.TemporaryDirectory() as scratch:
        save(model.network, model.tokenizer, Path(scratch))
        student = measuring.load(Path(scratch))
    rows = measuring.draw_rows(task, looks.prompts, LOOK)
    rollouts = measuring.respond(student, task, rows, LOOK)
    found = measuring.verified(student, task, rows, rollouts)
    note(
        f"{run.name}: {step} updates, {found['accuracy']:.0%} right, "
        f"{found['steps_right']:.0%} of steps"
    )
    return found["accuracy"] >= looks.least


def _figures(student: Student, task: LabTask, prompts: int) -> dict[str, float]:
    rows = measuring.draw_rows(task, prompts, MEASURE)
    rollouts = measuring.respond(student, task, rows, MEASURE)
    return {
        **measuring.verified(student, task, rows, rollouts),
        **measuring.spread(student, rollouts),
        "after_slips": measuring.after_slips(student, task, prompts, MEASURE),
    }


def missed(run: Run, figures: Mapping[str, float]) -> list[str]:
    """The bars that a model misses, in words."""
    bars = TEACHER_BARS if run.looks is None else STUDENT_BARS
    return [
        f"{figure} {figures[figure]:.3f} is not within {least:g} and {most:g}"
        for figure, (least, most) in bars.items()
        if not least <= figures[figure] <= most
    ]


def refuse_below_bars(run: Run, figures: Mapping[str, float]) -> None:
    """Raises LsmError where ``missed`` says something."""
    if found := missed(run, figures):
        raise LsmError(
            f"it is not a {run.role}: {'; '.join(found)}",
            where=f"study lab, {run.name}",
            fix="take another --seed",
        )
