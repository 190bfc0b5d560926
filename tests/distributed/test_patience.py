"""Waits for rank 0 that last longer than ranks wait for each other."""

from __future__ import annotations

import multiprocessing
import os
import signal
from datetime import timedelta
from threading import Event
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed import TCPStore

from student_trainer.distributed.world import RankError, World, lost
from student_trainer.run.signals import Stopped, Stopper

pytestmark = pytest.mark.ranks

SIZE = 3
# Seconds that ranks wait for each other, and what takes longer.
LIMIT, LONGER = 5.0, 8.0


def long_work(world: World) -> Any:
    def act() -> int:
        Event().wait(LONGER)
        return 7

    found = world.on_first(act, however_long=True)
    return world.from_first(found)


def failing_work(world: World) -> Any:
    def act() -> None:
        Event().wait(LONGER)
        raise OSError("no room")

    try:
        world.on_first(act, however_long=True)
    except OSError as error:
        return str(error)
    except RankError as error:
        return error.what
    return "no error"


def told_while_waiting(world: World) -> Any:
    """Rank 1 alone is told to end."""

    def act() -> None:
        Event().wait(LONGER)

    with Stopper():
        if world.rank == 1:
            signal.setitimer(signal.ITIMER_REAL, 1)
            signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
        try:
            world.on_first(act, however_long=True)
        except SystemExit as error:
            return error.code, type(error) is Stopped
    return "no error"


def first_dies(world: World) -> Any:
    def act() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        world.on_first(act, however_long=True)
    except RuntimeError as error:
        return isinstance(lost(world, error), RankError)
    return "no error"


def run(case: Any, rank: int, port: int, said: Any) -> None:
    store = TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=SIZE, timeout=timedelta(seconds=LIMIT)
    )
    said.put((rank, case(World(rank, SIZE, rank))))


def ranks(case: Any) -> dict[int, Any]:
    """What each of three ranks says that ends by itself."""
    context = multiprocessing.get_context("spawn")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    said: Any = context.Queue()
    every = [context.Process(target=run, args=(case, n, store.port, said)) for n in range(SIZE)]
    for one in every:
        one.start()
    found = dict(said.get(timeout=120) for _ in range(SIZE - (case is first_dies)))
    for one in every:
        one.join(60)
    return found


def test_ranks_wait_for_the_first_longer_than_for_each_other() -> None:
    said = ranks(long_work)
    assert said == {0: 7, 1: 7, 2: 7}


def test_an_error_after_a_long_wait_is_one_of_all() -> None:
    said = ranks(failing_work)
    assert said[0] == "no room"
    assert said[1] == said[2] == "rank 0 of 3 has failed: OSError: no room"


def test_a_rank_that_is_told_to_end_while_it_waits_does_so_with_the_others() -> None:
    said = ranks(told_while_waiting)
    assert said == {0: (143, False), 1: (143, True), 2: (143, False)}


def test_who_waits_ends_at_once_when_the_first_dies() -> None:
    said = ranks(first_dies)
    assert said == {1: True, 2: True}
