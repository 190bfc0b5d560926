"""How straight the way of a request through the service is: it is followed and counted."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from tokenizers import Tokenizer

from teacher_server import config, memory
from tests.server.crossed import TEXT, request, upload
from tests.server.running import LONG, Running, running
from tests.support.footsteps import Footsteps, Way

# Rooms that are one step of the way to who follows a request: pure inside, and entered by
# a call or two.
CLOSED = {
    "engines": ["engines/"],
    "realign": ["realign/", "workers/", "frames.py"],  # by messages, in another process
    "queue": ["queue/"],
}
# Half of the 78 stops that were counted at commit 935231d, of which 58 were returns.
MOST_STOPS = 39
# Counted there for a request in another tokenizer: 125 stops, 99 of them returns.
MOST_STOPS_REALIGNED = 85
MOST_PARAMETERS = 6
# What the server does from time to time, and the order in which threads end, may add a stop: of a
# request in another tokenizer to two thirds of the trials on a quiet machine.
TRIALS = 40


@pytest.fixture(scope="module")
def footsteps() -> Footsteps:
    return Footsteps(Path(config.__file__).parent, CLOSED)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def followed(tiny_model_dir: Path, footsteps: Footsteps) -> AsyncIterator[Running]:
    """A server whose threads can be followed."""
    with pytest.MonkeyPatch.context() as patch, footsteps.installed():
        # It looks at its memory more often than a request takes.
        patch.setattr(memory, "LOOK_SECONDS", 3600)
        async with running({"default": tiny_model_dir}, patch) as server:
            yield server


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_makes_half_the_stops(followed: Running, footsteps: Footsteps) -> None:
    scored = followed.request()
    await followed.score(replace(scored, request_id="first"))
    ways = []
    for number in range(TRIALS):
        with footsteps.following() as way:
            await followed.score(replace(scored, request_id=f"followed-{number}"))
        ways.append(way)
    way = min(ways, key=lambda way: len(way.stops))
    stops = way.stops
    for before, after in (("grpc/servicer.py", "scoring/service.py"), ("queue", "engines")):
        assert stops.index(before) < stops.index(after)
    assert len(stops) <= MOST_STOPS, shown(way)
    check_parameters(way)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_in_another_tokenizer_takes_the_same_way(
    followed: Running, footsteps: Footsteps, student_file: bytes, student: Tokenizer
) -> None:
    await followed.client.register_tokenizer(upload(student_file), timeout=LONG)
    scored = request(followed, student_file, student.encode(TEXT).ids)
    with footsteps.following() as first:
        await followed.score(replace(scored, request_id="first"))
    check_parameters(first)  # it asks for rows that the next one finds known
    ways = []
    for number in range(TRIALS):
        with footsteps.following() as way:
            await followed.score(replace(scored, request_id=f"followed-{number}"))
        ways.append(way)
    way = min(ways, key=lambda way: len(way.stops))
    assert "realign" in way.stops
    assert len(way.stops) <= MOST_STOPS_REALIGNED, shown(way)


def shown(way: Way) -> str:
    return "\n".join(f"{place}: {code.co_qualname}" for place, code in way.calls)


def check_parameters(way: Way) -> None:
    assert {name: n for name, n in way.parameters.items() if n > MOST_PARAMETERS} == {}


A = """
import asyncio
from trodden import b

def plain(one, *, two=0):
    b.plain()
    helper()
    b.plain()

def helper():
    pass

async def slow(one, two):
    await b.slow()
    helper()

async def threaded():
    await asyncio.to_thread(b.plain)

class Thing:
    def many(self, a, b, c):
        inside.entered()

from trodden.room import inside
"""
B = """
import asyncio

def plain():
    pass

async def slow():
    for _ in range(3):
        await asyncio.sleep(0)
"""
INSIDE = """
from trodden.room import deep

def entered():
    deep.helper()
"""


@pytest.fixture
def trodden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    package = tmp_path / "trodden"
    files = {"a.py": A, "b.py": B, "room/inside.py": INSIDE, "room/deep.py": "def helper(): pass"}
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "trodden"]:
        del sys.modules[name]


async def test_calls_are_counted_by_file(trodden: Path) -> None:
    a = importlib.import_module("trodden.a")
    steps = Footsteps(trodden, {"room": ["room/"]})
    with steps.installed():
        with steps.following() as plain:
            a.plain(1)
        assert plain.stops == ["a.py", "b.py", "a.py", "b.py"]
        assert plain.returns == 2
        with steps.following() as slow:
            await asyncio.gather(a.slow(1, 2))
        assert slow.stops == ["a.py", "b.py", "a.py"], "a coroutine resumed is no new call"
        with steps.following() as threaded:
            await a.threaded()
        assert threaded.stops == ["a.py", "b.py"]
        with steps.following() as entered:
            a.Thing().many(1, 2, 3)
        assert [code.co_qualname for _, code in entered.calls] == ["Thing.many", "entered"]
        assert entered.stops == ["a.py", "room"], "the inside of a closed room is not followed"
    assert plain.parameters["a.py: plain"] == 2
    assert entered.parameters["a.py: Thing.many"] == 3
    a.plain(1)
    assert len(plain.calls) == 4, "nothing is recorded unasked"
