"""What an update takes: with activations that are kept, recomputed, or computed in bfloat16.

Figures, for each SHAPE of ``shapes``:
    update_checkpointing_SHAPE    seconds of an update with ``student.gradient_checkpointing`` over
                                  those of a plain one; ``_memory``: the same of the bytes that the
                                  peak of the micro-batches adds to the process
    update_autocast_SHAPE         the same of a plain update under bfloat16 autocast, which the
                                  trainer does not have
    update_SHAPE_PART             share of a plain update's time (``PARTS``), by torch's profiler

All sides make real updates of one student, with random scores of ``TOP_K`` ids a row.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from teacher_proto.processes.memory import give_back_free_pages
from teacher_proto.rows import Rows, Support
from teacher_proto.types import ContinuationScores, TextPrompt
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import alternate, median_ratio, peak_extra_bytes
from benchmarks.trainer.lengths import lognormal_lengths
from benchmarks.trainer.shapes import LARGE, QUICKSTART, shape
from benchmarks.trainer.step_sides import GROUP, LONGEST, MICRO_BATCH_TOKENS, PROMPTS
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student, load_student
from student_trainer.update.metrics import UpdateTotals
from student_trainer.update.updater import Updater

PROMPT, MEAN, TOP_K = 48, 25, 256
# Names of torch's events, whose times with everything inside of them add up to a part.
PARTS = {
    "attention": (
        "aten::scaled_dot_product_attention",
        "ScaledDotProductFlashAttentionForCpuBackward0",
    ),
    "head_rows": ("_GatheredProjection", "_GatheredProjectionBackward"),
    "embedding": ("_Rows", "_RowsBackward"),
    "products": ("aten::mm", "aten::addmm"),
    "optimizer": ("Optimizer.step#AdamW.step",),
}


def measure(quick: bool) -> dict[str, Any]:
    """``figures`` and ``details``."""
    figures: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name in (QUICKSTART, LARGE):
        with tempfile.TemporaryDirectory() as folder:
            found = _measured(name, Path(folder), 1 if quick else 3)
        seconds, peaks = found["seconds"], found["bytes"]
        for side in ("checkpointing", "autocast"):
            figures[f"update_{side}_{name}"] = median_ratio(seconds[side], seconds["plain"])
            figures[f"update_{side}_memory_{name}"] = peaks[side] / peaks["plain"]
        figures |= {f"update_{name}_{part}": share for part, share in found["parts"].items()}
        details[name] = found
    return {"figures": figures, "details": details}


def _measured(name: str, folder: Path, repetitions: int) -> dict[str, Any]:
    config = TrainConfig.model_validate(
        {
            "run": {"output_dir": str(folder / "run"), "steps": 10_000},
            "student": {"model": str(shape(name, folder).student), "device": "cpu"},
            "teacher": {"address": "localhost:1"},
            "data": {"train": "unread.jsonl", "max_prompt_tokens": PROMPT},
            "rollout": {"max_new_tokens": LONGEST},
            "loss": {"top_k": TOP_K},
            "optimizer": {"lr": 1e-6, "micro_batch_tokens": MICRO_BATCH_TOKENS},
            "report": {"metric_rows": 0},
        }
    )
    student = load_student(config.student)
    updater = Updater(student, config)
    rollouts, scores = _batch(student.drawn_below)

    def gradients() -> None:
        updater.gradients(rollouts, scores.__getitem__, UpdateTotals(), 1)

    def update(setting: AbstractContextManager[None]) -> None:
        with setting:
            updater.update(rollouts, scores.__getitem__, UpdateTotals(), 1)

    def side(setting: Callable[[], AbstractContextManager[None]]) -> Callable[[int], None]:
        return lambda _: update(setting())

    sides: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "plain": contextlib.nullcontext,
        "checkpointing": lambda: _checkpointing(student),
        "autocast": _autocast,
    }
    times = alternate({key: side(setting) for key, setting in sides.items()}, repetitions)
    peaks = {}
    for key, setting in sides.items():
        updater.optimizer.zero_grad()  # the gradients themselves are the same on every side
        give_back_free_pages()
        with setting():
            peaks[key] = peak_extra_bytes(gradients)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        update(contextlib.nullcontext())
    return {
        "seconds": times,
        "median_seconds": {key: statistics.median(each) for key, each in times.items()},
        "bytes": peaks,
        "parts": _shares(profiled),
    }


def _batch(ids: int) -> tuple[list[Rollout], list[ContinuationScores]]:
    """Responses of random tokens as in ``compared``, and random scores of them."""
    rng = np.random.default_rng(0)
    rollouts, scores = [], []
    for at, count in enumerate(lognormal_lengths(PROMPTS * GROUP, longest=LONGEST, mean=MEAN)):
        if at % GROUP == 0:
            prompt = rng.integers(3, ids, PROMPT).astype(np.int32)
        item = PromptItem(str(at // GROUP), prompt, TextPrompt(""))
        drawn = rng.integers(3, ids, count).astype(np.int32)
        rollouts.append(Rollout(item, at % GROUP, drawn, np.zeros(count, np.float32), True))
        chosen = np.stack([rng.choice(ids, TOP_K, replace=False) for _ in range(count)])
        log_probs = np.log(np.sort(rng.dirichlet(np.ones(TOP_K), count))[:, ::-1])
        support = Support(
            chosen.astype(np.int32), log_probs.astype(np.float32), np.full(count, TOP_K, np.int32)
        )
        scores.append(ContinuationScores(rows=Rows(support=support)))
    return rollouts, scores


@contextlib.contextmanager
def _checkpointing(student: Student) -> Iterator[None]:
    """Inside, layers recompute their activations, as with ``student.gradient_checkpointing``."""
    model = student.causal_model
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


@contextlib.contextmanager
def _autocast() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


def _shares(profiled: profile) -> dict[str, float]:
    """Of the time of all events; ``other`` is the rest: norms, activations, sums."""
    events = {event.key: event for event in profiled.key_averages()}
    total = sum(event.self_cpu_time_total for event in events.values())
    shares = {
        part: sum(events[name].cpu_time_total for name in names if name in events) / total
        for part, names in PARTS.items()
    }
    return {**shares, "other": 1 - sum(shares.values())}
