"""What one run does costs another run no tokenizer and no process: the pool, with processes of
which each step is the test's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from teacher_proto.errors import InvalidRequestError, TeacherUnavailableError

from teacher_server.frames import Frame
from teacher_server.settings.tokenizers import TokenizerSettings
from teacher_server.workers import pool as pool_module
from teacher_server.workers.failures import FAILURE_SECONDS, MAX_FAILURES, Failures
from teacher_server.workers.inside.errors import WorkerError
from teacher_server.workers.memory import BASE_BYTES, Expected
from teacher_server.workers.pool import Pool
from tests.server.running import LONG, eventually

pytestmark = pytest.mark.asyncio

MIB = 2**20
FACTS = {"hash": "v2-" + "0" * 64, "ordinary_hash": "v2-" + "1" * 64, "vocabulary_size": 8}


class Children:
    """Of a pool: none is a process, and each answers as the test says."""

    def __init__(self) -> None:
        self.all: list[Child] = []
        self.size = 64 * MIB
        self.steps: dict[str, Callable[[], None]] = {}
        self.begun: dict[str, threading.Event] = {}

    def start(self) -> Any:
        self.all.append(Child(self))
        return self.all[-1]

    def on(self, kind: str, step: Callable[[], None]) -> threading.Event:
        self.steps[kind] = step
        self.begun[kind] = threading.Event()
        return self.begun[kind]


class Child:
    """In place of ``Worker``."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self.killed = threading.Event()
        self.asked: list[str] = []
        self.pid = 1

    @property
    def gone(self) -> bool:
        return self.killed.is_set()

    def ask(self, frame: Frame, seconds: float) -> Frame:
        self.asked.append(frame.kind)
        if frame.kind in self._children.steps:
            self._children.begun[frame.kind].set()
            self._children.steps[frame.kind]()
        if self.killed.is_set():
            raise WorkerError("has ended", own=False)
        return Frame(frame.kind, FACTS)

    def until_killed(self) -> None:
        assert self.killed.wait(LONG)

    def processor_seconds(self) -> float:
        return 0.0

    def private_bytes(self) -> int:
        return self._children.size

    def kill(self) -> None:
        self.killed.set()

    def end(self) -> str:
        self.killed.set()
        return "SIGKILL"


class Sharing:
    """A pool, and what runs do with it."""

    def __init__(self, patch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.children = Children()
        patch.setattr(pool_module, "Worker", lambda *_: self.children.start())
        forks: Any = None
        self.pool = Pool(forks, TokenizerSettings(**settings), lambda _: "")

    def processes(self) -> list[tuple[str, str]]:
        return [(one.key, one.run) for one in self.pool._processes.values()]

    async def use(self, key: str, run: str, kind: str = "encode") -> Frame:
        async with self.pool.hold(key, run, 100) as process:
            await self.pool.open(process, run, {}, lambda: b"{}")
            await self.pool.build(process, run, "teacher", 0)
            return await self.pool.ask(process, run, Frame(kind), LONG)

    async def keep(self, key: str, run: str, leave: asyncio.Event) -> None:
        async with self.pool.hold(key, run, 100) as process:
            await self.pool.open(process, run, {}, lambda: b"{}")
            await leave.wait()


@pytest_asyncio.fixture
async def sharing(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Sharing]]:
    made: list[Sharing] = []

    def make(**settings: Any) -> Sharing:
        made.append(Sharing(monkeypatch, **settings))
        return made[-1]

    yield make
    for one in made:
        await one.pool.close()


async def turned(times: int = 20) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


def fails(limit: bool = True) -> None:
    raise WorkerError("took more than 1 s", own=True, limit=limit)


async def test_requests_that_fail_are_counted_for_their_own_run(sharing: Any) -> None:
    one = sharing()
    one.children.on("encode", fails)
    for _ in range(MAX_FAILURES):
        with pytest.raises(InvalidRequestError, match="the request took more") as found:
            await one.use("shared", "evil")
        assert found.value.reason == "LIMIT_EXCEEDED"
    with pytest.raises(InvalidRequestError, match=f"failed {MAX_FAILURES} times in requests of"):
        await one.use("shared", "evil")
    assert (await one.use("shared", "good", "texts")).kind == "texts"


async def test_a_run_whose_request_failed_has_a_process_of_its_own(sharing: Any) -> None:
    one = sharing()
    await one.use("shared", "good", "texts")
    one.children.on("encode", fails)
    with pytest.raises(InvalidRequestError):
        await one.use("shared", "evil")
    leave = asyncio.Event()
    keeping = asyncio.create_task(one.keep("shared", "good", leave))
    await eventually(lambda: len(one.children.all) == 2)
    with pytest.raises(InvalidRequestError):
        await one.use("shared", "evil")
    leave.set()
    await keeping
    first, good, evil = one.children.all
    await eventually(lambda: first.gone and evil.gone)
    assert not good.gone


async def test_a_tokenizer_that_cannot_be_opened_is_refused_for_all(sharing: Any) -> None:
    one = sharing()
    one.children.on("open", fails)
    for run in range(MAX_FAILURES):
        with pytest.raises(InvalidRequestError, match="took more than") as found:
            await one.use("bad", f"run-{run}")
        assert found.value.reason == "TOKENIZER_REFUSED"
    with pytest.raises(InvalidRequestError, match=f"failed {MAX_FAILURES} times in the last"):
        await one.use("bad", "another")


async def test_tables_are_not_blamed_on_the_tokenizer_once_it_was_asked(sharing: Any) -> None:
    one = sharing()
    await one.use("shared", "evil")
    one.children.on("pair", fails)
    for _ in range(MAX_FAILURES + 1):
        async with one.pool.hold("shared", "evil", 100) as process:
            await one.pool.open(process, "run", {}, lambda: b"{}")
            await one.pool.ask(process, "evil", Frame("encode"), LONG)
            with pytest.raises(InvalidRequestError, match="took more than"):
                await one.pool.build(process, "run", "teacher", 1)
    del one.children.steps["pair"]
    await one.use("shared", "good")


async def test_failures_are_forgotten_in_time() -> None:
    at = 0.0
    failures = Failures(lambda: at)
    for _ in range(MAX_FAILURES):
        failures.note("key", "run")
    assert (failures.count("key", "run"), failures.count("key", None)) == (MAX_FAILURES, 0)
    assert failures.is_apart("key", "run")
    assert not failures.is_apart("key", "other")
    at = FAILURE_SECONDS + 1
    assert failures.count("key", "run") == 0
    assert not failures.is_apart("key", "run")


async def test_tables_that_nobody_waits_for_cost_no_other_run_its_own(sharing: Any) -> None:
    one = sharing(max_pairs=2)
    await one.use("good", "good")
    for cancelled in range(3):
        go_on = threading.Event()
        begun = one.children.on("pair", go_on.wait)
        asking = asyncio.create_task(one.use(f"evil-{cancelled}", "evil"))
        await asyncio.to_thread(begun.wait, LONG)
        asking.cancel()
        await asyncio.wait([asking])
        go_on.set()
        await eventually(lambda: not any(p.steps for p in one.pool._processes.values()))
    await one.use("good", "good")
    assert one.children.all[0].asked.count("pair") == 1
    assert "forget" not in one.children.all[0].asked
    assert sum(len(one.teachers) for one in one.pool._processes.values()) == 2


async def test_tables_in_use_are_kept(sharing: Any) -> None:
    one = sharing(max_pairs=1)
    async with one.pool.hold("good", "good", 100) as process:
        await one.pool.open(process, "run", {}, lambda: b"{}")
        await one.pool.build(process, "run", "teacher", 0)
        await one.use("evil", "evil")
        assert process.teachers == {0: "teacher"}
    assert sum(len(one.teachers) for one in one.pool._processes.values()) == 1


async def test_a_step_keeps_its_turn_when_its_caller_leaves_and_is_ended(
    sharing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "ABANDONED_SECONDS", 0.01)
    one = sharing()
    await one.use("evil", "evil", "texts")
    (child,) = one.children.all
    begun = one.children.on("encode", child.until_killed)
    asking = asyncio.create_task(one.use("evil", "evil"))
    await asyncio.to_thread(begun.wait, LONG)
    (process,) = one.pool._processes.values()
    asking.cancel()
    await asyncio.wait([asking])
    assert process.users == 1
    assert one.pool._turns._taken["evil"] == 1
    assert await asyncio.to_thread(child.killed.wait, LONG)
    await eventually(lambda: not process.users)
    assert one.pool._turns._taken["evil"] == 0
    del one.children.steps["encode"]
    await one.use("evil", "evil")


async def test_a_step_that_was_not_begun_goes_with_its_caller(sharing: Any) -> None:
    one = sharing()
    go_on = threading.Event()
    begun = one.children.on("encode", go_on.wait)
    first = asyncio.create_task(one.use("key", "run"))
    await asyncio.to_thread(begun.wait, LONG)
    others = [asyncio.create_task(one.use("key", "run", "texts")) for _ in range(4)]
    await turned()
    for other in others:
        other.cancel()
    await asyncio.wait(others)
    await turned()
    (process,) = one.pool._processes.values()
    assert process.users == 2  # the first, and its step
    go_on.set()
    await first
    assert "texts" not in one.children.all[0].asked


async def test_memory_is_charged_before_it_is_used(sharing: Any) -> None:
    one = sharing(max_memory_bytes=400 * MIB, worker_memory_bytes=400 * MIB)
    one.children.size = 150 * MIB
    for n in range(6):
        await one.use(f"key-{n}", f"run-{n}")
    for process in list(one.pool._processes.values()):
        one.pool.end(process)
    leave = asyncio.Event()
    tasks = [asyncio.create_task(one.keep(f"key-{n}", f"run-{n}", leave)) for n in range(6)]
    await turned()
    assert len(one.pool._processes) == 2
    leave.set()
    await asyncio.gather(*tasks)


async def test_a_run_keeps_at_most_half_in_use_and_others_find_room_at_once(sharing: Any) -> None:
    one = sharing(max_memory_bytes=8 * 64 * MIB, worker_memory_bytes=128 * MIB)
    leave = asyncio.Event()
    evil = [asyncio.create_task(one.keep(f"evil-{n}", "evil", leave)) for n in range(8)]
    await turned()
    assert 1 <= sum(run == "evil" for _, run in one.processes()) <= 5
    assert (await one.use("good", "good")).kind == "encode"
    leave.set()
    await asyncio.gather(*evil)


async def test_what_has_grown_goes_first_and_what_is_in_use_as_expected_stays(sharing: Any) -> None:
    one = sharing(max_memory_bytes=512 * MIB, worker_memory_bytes=512 * MIB)
    leave = asyncio.Event()
    keeping = asyncio.create_task(one.keep("good", "good", leave))
    await turned()
    await one.use("idle", "good", "texts")
    async with one.pool.hold("evil", "evil", 100) as process:
        await one.pool.open(process, "run", {}, lambda: b"{}")
        await one.pool.build(process, "run", "teacher", 0)
        process._measured = 0.0
        one.children.size = 1024 * MIB
        await one.pool.ask(process, "evil", Frame("encode"), LONG)
        await turned()
        with pytest.raises(TeacherUnavailableError):
            await one.pool.ask(process, "evil", Frame("encode"), LONG)
    assert one.processes() == [("good", "good")]
    leave.set()
    await keeping


async def test_what_a_tokenizer_takes_is_remembered_and_otherwise_estimated() -> None:
    expected = Expected(300 * MIB)
    assert expected.bytes_of("small", 1000) == BASE_BYTES + 24 * 1000
    assert expected.bytes_of("large", 100 * MIB) == 300 * MIB
    expected.note("small", 200 * MIB)
    assert expected.bytes_of("small", 1000) == 200 * MIB


async def test_a_closed_pool_says_so(sharing: Any) -> None:
    one = sharing()
    await one.use("key", "run")
    await one.pool.close()
    with pytest.raises(TeacherUnavailableError, match="the server ends"):
        await one.use("key", "run")
