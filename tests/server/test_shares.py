"""Shares of small requests on an engine that reads what is in flight pass by pass: by order and
count, with the pure queue and no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from teacher_server.queue.admission import AdmissionQueue
from teacher_server.queue.policy import RunPolicy
from teacher_server.queue.scheduler import Deadline, Ticket
from teacher_server.teachers.load import inflight_tokens

PASS = 1024
BATCH = 8192
PASSES = 500


@dataclass
class Run:
    """A run that keeps ``outstanding`` requests of ``tokens`` tokens in the service."""

    weight: float
    outstanding: int
    tokens: int = 100
    served: int = 0
    waits: list[int] = field(default_factory=list)


def serve(runs: dict[str, Run], window: int) -> None:
    """Reads PASSES passes, each of what is in flight in the order of admission, and sends a
    new request for each that ended. A wait is counted in passes that hold others only."""
    queue = AdmissionQueue(max_inflight_tokens=window, max_queue_tokens=10**9)
    inflight: list[Ticket] = []
    arrived: dict[Ticket, int] = {}
    passes = 0

    def send(name: str) -> None:
        policy = RunPolicy(name, runs[name].weight)
        ticket = Ticket(runs[name].tokens, policy, Deadline(math.inf))
        arrived[ticket] = passes
        if queue.offer(ticket, 0.0):
            inflight.append(ticket)

    def read() -> list[Ticket]:
        held = [inflight.pop(0)]
        while inflight and sum(t.tokens for t in held) + inflight[0].tokens <= PASS:
            held.append(inflight.pop(0))
        return held

    for name in sorted(runs, key=lambda name: -runs[name].outstanding):
        for _ in range(runs[name].outstanding):
            send(name)
    held = read()
    for passes in range(1, PASSES + 1):
        following = read() if inflight else []  # the engine goes on before replies have left
        for ticket in held:
            run = runs[ticket.policy.run]
            run.served += ticket.tokens
            run.waits.append(passes - 1 - arrived.pop(ticket))
            queue.leave(ticket, 0.0, completed=True)
        inflight.extend(queue.advance(0.0)[0])
        for ticket in held:
            send(ticket.policy.run)
        held = following or read()


def share(runs: dict[str, Run], name: str) -> float:
    return runs[name].served / sum(run.served for run in runs.values())


WINDOW = inflight_tokens(BATCH, PASS)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0), (3.0, 1.0)])
@pytest.mark.parametrize("tokens", [30, 100, 190])
def test_a_run_with_twice_its_share_outstanding_has_its_share(
    weights: tuple[float, float], tokens: int
) -> None:
    due = weights[0] / sum(weights)
    enough = math.ceil(2 * due * WINDOW / tokens)
    runs = {"own": Run(weights[0], enough, tokens), "flood": Run(weights[1], 400, 100)}
    serve(runs, WINDOW)
    assert share(runs, "own") == pytest.approx(due, rel=0.05)


@pytest.mark.parametrize("outstanding", [1, 4])
@pytest.mark.parametrize("floods", [1, 3])
def test_a_run_with_less_waits_for_two_passes_at_most(outstanding: int, floods: int) -> None:
    runs = {"own": Run(1.0, outstanding)}
    runs |= {f"flood {n}": Run(1.0, 400) for n in range(floods)}
    serve(runs, WINDOW)
    assert max(runs["own"].waits[outstanding:]) <= 2


def test_a_window_of_four_passes_has_neither() -> None:
    """What a larger window costs: the negative control of the two tests above."""
    runs = {"own": Run(1.0, 4), "flood": Run(1.0, 400)}
    serve(runs, 2 * WINDOW)
    assert max(runs["own"].waits[4:]) > 2
    runs = {"own": Run(1.0, math.ceil(WINDOW / 100)), "flood": Run(1.0, 400)}
    serve(runs, 2 * WINDOW)
    assert share(runs, "own") < 0.45
