"""Which connection gives way to a new one: counting, without sockets."""

from __future__ import annotations

from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.http.connection.table import Rank, Table


def test_the_address_with_most_connections_gives_way() -> None:
    table = Table(ConnectionBounds(4, 3))
    mine, _ = table.enter("10.0.0.1")
    theirs = [table.enter("10.0.0.2")[0] for _ in range(3)]
    assert table.enter("10.0.0.3")[1] is theirs[0]
    assert table.enter("10.0.0.2")[1] is theirs[1]  # two of its own, and no room in all
    table.move(mine, Rank.BUSY)
    assert not mine.reserved


def test_strangers_give_way_first_and_the_busy_never() -> None:
    table = Table(ConnectionBounds(4, 4))
    let_in, asks_health, stranger, busy = (table.enter("a")[0] for _ in range(4))
    table.rest(let_in, let_in=True)
    table.rest(let_in, let_in=False)
    table.rest(asks_health, let_in=False)
    table.move(busy, Rank.BUSY)
    for expected in (stranger, asks_health, let_in):
        newest, gone = table.enter("b")
        assert gone is expected
        table.move(newest, Rank.BUSY)
    later = newest
    table.move(later, Rank.BUSY)
    reserved, gone = table.enter("c")
    assert (reserved.reserved, gone) == (True, None)
    assert not table.promote(reserved)
    table.leave(busy)
    table.leave(busy)
    assert table.promote(reserved)
    assert len(table) == 4


def test_of_new_and_waiting_ones_the_more_numerous_give_way() -> None:
    table = Table(ConnectionBounds(8, 8))
    new = [table.enter("a", Rank.NEW)[0] for _ in range(5)]
    waits = [table.enter("a")[0] for _ in range(3)]
    for entry in waits:
        table.move(entry, Rank.WAITS)
    assert table.enter("b", Rank.BUSY)[1] is new[0]  # of all
    assert table.enter("a", Rank.BUSY)[1] is new[1]
    assert table.enter("a", Rank.BUSY)[1] is new[2]
    assert table.enter("a", Rank.BUSY)[1] is waits[0]
    assert table.enter("a", Rank.BUSY)[1] is new[3]
    assert table.enter("a", Rank.BUSY)[1] is waits[1]


def test_idle_ones_give_way_before_new_ones() -> None:
    table = Table(ConnectionBounds(2, 2))
    new, idle = table.enter("a", Rank.NEW)[0], table.enter("a")[0]
    table.rest(idle, let_in=True)
    assert table.enter("a", Rank.BUSY)[1] is idle
    assert table.enter("a", Rank.BUSY)[1] is new


def test_new_ones_of_an_address_leave_its_idle_ones_alone_where_they_are_more() -> None:
    table = Table(ConnectionBounds(8, 4))
    idle, silent = table.enter("10.0.0.1")[0], table.enter("10.0.0.1")[0]
    table.rest(idle, let_in=True)
    new = [table.enter("10.0.0.1", Rank.NEW)[0] for _ in range(2)]
    assert table.enter("10.0.0.1", Rank.NEW)[1] is silent  # as many
    assert table.enter("10.0.0.1", Rank.NEW)[1] is new[0]
    assert table.enter("10.0.0.1", Rank.NEW)[1] is new[1]
    for number in range(4):
        assert table.enter(f"10.0.1.{number}", Rank.NEW)[1] is None
    assert table.enter("10.0.2.1", Rank.NEW)[1] is idle  # of all addresses, idle ones go first


def test_who_asks_for_health_goes_last_of_its_address() -> None:
    table = Table(ConnectionBounds(8, 3))
    health = [table.enter("10.0.0.1", Rank.NEW, asks_health=True)[0] for _ in range(2)]
    waits = table.enter("10.0.0.1")[0]
    table.move(waits, Rank.WAITS)
    assert table.enter("10.0.0.1", Rank.NEW)[1] is waits
    newest, gone = table.enter("10.0.0.1", Rank.NEW, asks_health=True)
    assert (gone is None, gone in health) == (False, False)
    table.move(newest, Rank.BUSY)
    assert table.enter("10.0.0.1", Rank.BUSY)[1] is health[0]
    table.leave(health[1])
    assert len(table) == 2
