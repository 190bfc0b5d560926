"""One run of the laboratory: trained, measured, and kept in the cache."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_proto.errors import LsmError
from teacher_proto.program.files import write_text

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
        LsmError: the model misses a bar. Nothing is kept of it but the reason, with which a later
            call refuses it at once.
        ConfigurationError: the folder in the cache is damaged.
    """
    if bars and refusal_of(run).exists():
        raise _refused(run, refusal_of(run).read_text(encoding="utf-8"))
    return ensure(folder_of(run), lambda folder: _fill(run, note, bars, folder))


def kept(run: Run, *, bars: bool = False) -> str | None:
    """What the cache has of a run: "" for a model, which is whole; the reason for one that was
    refused, if bars count; None for nothing.

    Raises:
        ConfigurationError: the folder in the cache is damaged.
    """
    if bars and refusal_of(run).exists():
        return str(_refused(run, refusal_of(run).read_text(encoding="utf-8")))
    if not folder_of(run).exists():
        return None
    ensure(folder_of(run), lambda folder: {})
    return ""


def refusal_of(run: Run) -> Path:
    """The file in the cache that says why the model of a run was refused."""
    return folder_of(run).with_suffix(".refused")


def _refused(run: Run, reason: str) -> LsmError:
    return LsmError(
        reason,
        where=f"study lab, {run.name}",
        fix=f"take another --seed, or delete lab/{refusal_of(run).name} in the cache",
    )


def _fill(run: Run, note: Note, bars: bool, folder: Path) -> Mapping[str, Any]:
    """Trains, saves and measures a model. Raises LsmError where it misses a bar."""
    tokenizer = make_tokenizer(TASKS[run.task].numbers)
    model = Model(make_network(run.sizes, tokenizer, run.seed), tokenizer)
    started = time.monotonic()
    updates = _train(run, model, note)
    seconds = round(time.monotonic() - started, 1)
    save(model.network, tokenizer, folder)
    student = measuring.load(folder)
    figures = {
        run.figure_of(name, figure): value
        for name in run.measured_on
        for figure, value in _figures(student, TASKS[name], run.measured).items()
    }
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
    raise _keep_refusal(run, f"none of its {run.schedule.steps} updates made a student of it")


def _is_student(run: Run, looks: Looks, step: int, model: Model, note: Note) -> bool:
    """Whether a look is due after this update, and finds a model that is good enough."""
    if step < looks.first or (step - looks.first) % looks.every:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        save(model.network, model.tokenizer, Path(scratch))
        student = measuring.load(Path(scratch))
    found = {name: _look(student, TASKS[name], looks.prompts) for name in run.measured_on}
    told = (
        f"{run.figure_of(name, 'right')} {one['accuracy']:.0%}, {one['steps_right']:.0%} of steps"
        for name, one in found.items()
    )
    note(f"{run.name}: {step} updates, {', '.join(told)}")
    return looks.find_a_student(one["accuracy"] for one in found.values())


def _look(student: Student, task: LabTask, prompts: int) -> dict[str, float]:
    rows = measuring.draw_rows(task, prompts, LOOK)
    return measuring.verified(student, task, rows, measuring.respond(student, task, rows, LOOK))


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
        for task in run.measured_on
        for name, (least, most) in bars.items()
        if not least <= figures[figure := run.figure_of(task, name)] <= most
    ]


def refuse_below_bars(run: Run, figures: Mapping[str, float]) -> None:
    """Raises LsmError where ``missed`` says something, and keeps the reason in the cache."""
    if found := missed(run, figures):
        raise _keep_refusal(run, f"it is not a {run.role}: {'; '.join(found)}")


def _keep_refusal(run: Run, reason: str) -> LsmError:
    refusal_of(run).parent.mkdir(parents=True, exist_ok=True)
    write_text(refusal_of(run), reason)
    return _refused(run, reason)
