"""Faults at exact places of a program, for runs under tests.support.zygote.

A fault is {"target": "module:Class.function", "call": n} with either "signal"
(sent to the own process before the n-th call, or after it with "after"),
"poison" (of the teacher: replies from the n-th request on of the run with this name) or
"disabled" (it does nothing and gives None, as if the check had never been written).
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from teacher_proto.types import ContinuationScores, ScoreReply

from tests.support.replies import with_arrays

Fault = dict[str, Any]


def killed(
    target: str, call: int, *, after: bool = False, number: int = signal.SIGKILL
) -> list[Fault]:
    return [{"target": target, "call": call, "after": after, "signal": int(number)}]


def disabled(target: str) -> list[Fault]:
    return [{"target": target, "disabled": True}]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to let a file of this process grow beyond it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def install(faults: list[Fault]) -> None:
    for fault in faults:
        if "disabled" in fault:
            owner, name = _find(fault["target"])
            setattr(owner, name, lambda *arguments, **named: None)
        else:
            (_poison if "poison" in fault else _signal)(fault)


def _signal(fault: Fault) -> None:
    owner, name = _find(fault["target"])
    original = getattr(owner, name)
    counted: Counter[str] = Counter()

    def due() -> bool:
        counted["calls"] += 1
        return counted["calls"] == fault["call"]

    def fire() -> None:
        os.kill(os.getpid(), fault["signal"])

    @functools.wraps(original)
    def plain(*arguments: Any, **named: Any) -> Any:
        now = due()
        if now and not fault["after"]:
            fire()
        result = original(*arguments, **named)
        if now and fault["after"]:
            fire()
        return result

    @functools.wraps(original)
    async def asynchronous(*arguments: Any, **named: Any) -> Any:
        now = due()
        if now and not fault["after"]:
            fire()
        result = await original(*arguments, **named)
        if now and fault["after"]:
            fire()
        return result

    setattr(owner, name, asynchronous if inspect.iscoroutinefunction(original) else plain)


def _poison(fault: Fault) -> None:
    owner, name = _find("teacher_server.scoring.service:score")
    original = getattr(owner, name)
    lock, counted = asyncio.Lock(), Counter[str]()

    async def score(context: Any, *arguments: Any, **named: Any) -> Any:
        scored = await original(context, *arguments, **named)
        run = context.request.run
        kind = run.removeprefix("poison ")
        async with lock:
            counted[run] += 1
            spoil = kind in POISONS and counted[run] >= fault["call"]
        return replace(scored, reply=poisoned(scored.reply, kind)) if spoil else scored

    setattr(owner, name, score)


def _find(target: str) -> tuple[Any, str]:
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name


def poisoned(reply: ScoreReply, kind: str) -> ScoreReply:
    """The reply with its last continuation spoiled."""
    *others, last = reply.results
    return replace(reply, results=(*others, POISONS[kind](last)))


def _log_prob(value: float) -> Callable[[ContinuationScores], ContinuationScores]:
    def spoil(scores: ContinuationScores) -> ContinuationScores:
        changed = scores.rows.support.log_probs.copy()
        changed[-1, 0] = value
        return with_arrays(scores, top_log_probs=changed)

    return spoil


def _id(choose: Callable[[Any], int]) -> Callable[[ContinuationScores], ContinuationScores]:
    def spoil(scores: ContinuationScores) -> ContinuationScores:
        changed = scores.rows.support.ids.copy()
        changed[-1, -1] = choose(changed[-1])
        return with_arrays(scores, top_ids=changed)

    return spoil


def _cut(scores: ContinuationScores, place: Any, counts: Any = slice(None)) -> ContinuationScores:
    width = scores.rows.support.ids[place].shape[-1]
    return with_arrays(
        scores,
        top_ids=np.ascontiguousarray(scores.rows.support.ids[place]),
        top_log_probs=np.ascontiguousarray(scores.rows.support.log_probs[place]),
        valid_counts=np.minimum(scores.rows.support.counts[counts], width).astype(np.int32),
    )


def _heavy(scores: ContinuationScores) -> ContinuationScores:
    changed = scores.rows.support.log_probs.copy()
    changed[-1] = np.float32(np.log(2.0 / changed.shape[1]))
    return with_arrays(scores, top_log_probs=changed)


POISONS: dict[str, Callable[[ContinuationScores], ContinuationScores]] = {
    "NaN": _log_prob(np.nan),
    "+inf": _log_prob(np.inf),
    "log-probability above 1e-4": _log_prob(2e-4),
    "duplicate id": _id(lambda row: int(row[0])),
    "id outside the vocabulary": _id(lambda row: 320),
    "short row": lambda scores: _cut(scores, np.s_[:, :-1]),
    "mass above 1": _heavy,
    "wrong length": lambda scores: _cut(scores, np.s_[:-1], np.s_[:-1]),
}
