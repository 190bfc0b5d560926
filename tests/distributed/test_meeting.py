"""Ranks that are started again on the store of an earlier start."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import Store, TCPStore

from student_trainer.distributed.meeting import meet

SIZE = 3


def started(server: TCPStore) -> list[Store]:
    """What each of the ranks of one start gets, each by a connection of its own."""

    def join(rank: int) -> Store:
        return meet(TCPStore("127.0.0.1", server.port, is_master=False), rank, SIZE, 60)

    with ThreadPoolExecutor(SIZE) as ranks:
        return list(ranks.map(join, range(SIZE)))


def test_a_start_sees_nothing_of_an_earlier_one() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first = started(server)
    first[0].set("address", "of a rank that died")
    second = started(server)
    assert not any(store.check(["address"]) for store in second)
    second[0].set("address", "of one that lives")
    assert {store.get("address") for store in second} == {b"of one that lives"}
    assert {store.get("address") for store in first} == {b"of a rank that died"}


def test_a_rank_that_does_not_come_is_named() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(RuntimeError, match=r"ranks \[1, 2\] have not come"):
        meet(server, 0, SIZE, 0.1)
