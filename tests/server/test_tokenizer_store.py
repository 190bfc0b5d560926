"""What runs registered: each its own, within bounds, and nobody's at another's will."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import OverloadedError, TeacherUnavailableError
from teacher_proto.types import SpecialRole

from teacher_server.settings.tokenizers import TokenizerSettings
from teacher_server.tokenizers import folder as folder_module
from teacher_server.tokenizers.entry import Entry
from teacher_server.tokenizers.store import SYNC_SECONDS, TokenizerStore

DAY = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "folder"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "memory" else tmp_path / "kept"


def make(where: Path | None, clock: Clock, **settings: Any) -> TokenizerStore:
    return TokenizerStore(TokenizerSettings(folder=where, **settings), clock)


def file_of(name: str, size: int = 8) -> bytes:
    return name.encode().ljust(size, b".")


def entry_of(hash_: str, file: bytes, **roles: SpecialRole) -> Entry:
    given = {int(token[1:]): role for token, role in roles.items()}
    return Entry(hash_, hashlib.sha256(file).hexdigest(), len(file), "ordinary", 7, given)


def put(store: TokenizerStore, run: str, name: str, **roles: SpecialRole) -> list[Entry]:
    return store.put(run, entry_of(name, file_of(name), **roles), file_of(name))


def hashes(store: TokenizerStore, run: str | None = None) -> list[str]:
    return sorted(one.tokenizer_hash for one, _ in store.registrations(run))


def files(where: Path) -> int:
    return sum(1 for path in where.rglob("*") if path.is_file())


def test_a_run_uses_what_it_registered_and_no_other(where: Path | None, clock: Clock) -> None:
    store = make(where, clock)
    good, bad = file_of("good"), file_of("bad")
    store.put("hostile", entry_of("one", bad), bad)
    assert store.find("owner", "one") is None
    store.put("owner", entry_of("one", good), good)
    store.put("hostile", entry_of("one", bad, t3=SpecialRole.TURN_END), bad)
    mine, theirs = store.find("owner", "one"), store.find("hostile", "one")
    assert mine is not None
    assert theirs is not None
    assert store.read(mine) == good
    assert store.read(theirs) == bad
    assert mine.roles == {}
    assert mine.content != theirs.content
    assert store.find("", "one") is None
    assert store.find("owner", "other") is None


def test_equal_contents_are_kept_once(where: Path | None, clock: Clock) -> None:
    store = make(where, clock)
    for run in range(64):
        put(store, f"run-{run}", "one")
    put(store, "other-roles", "one", t1=SpecialRole.TURN_END)
    assert len(store.entries()) == 2
    if where is not None:
        assert len(list((where / "files").iterdir())) == 1
        assert files(where) == 1 + 2 + 65
    for run in range(64):
        store.drop(f"run-{run}", "one")
    (left,) = store.entries()
    assert left.roles == {1: SpecialRole.TURN_END}
    assert store.read(left) == file_of("one")


def test_a_run_that_registers_again_replaces_its_own(where: Path | None, clock: Clock) -> None:
    store = make(where, clock)
    put(store, "run", "one")
    clock.now += 5
    (gone,) = put(store, "run", "one", t1=SpecialRole.PADDING)
    assert gone.roles == {}
    ((registration, entry),) = store.registrations()
    assert entry.roles == {1: SpecialRole.PADDING}
    assert registration.registered == clock.now
    clock.now += 5
    assert put(store, "run", "one", t1=SpecialRole.PADDING) == []
    ((again, _),) = store.registrations()
    assert again.registered == clock.now - 5
    assert again.used == clock.now


def test_a_run_s_own_bounds_take_its_own_least_recently_used(
    where: Path | None, clock: Clock
) -> None:
    store = make(where, clock, max_per_run=2)
    put(store, "neighbour", "kept")
    for name in ("a", "b"):
        clock.now += 1
        put(store, "run", name)
    clock.now += 1
    store.find("run", "a")
    clock.now += 1
    assert [entry.tokenizer_hash for entry in put(store, "run", "c")] == ["b"]
    assert hashes(store, "run") == ["a", "c"]
    assert hashes(store, "neighbour") == ["kept"]


def test_bytes_of_one_run_are_bounded(where: Path | None, clock: Clock) -> None:
    store = make(where, clock, max_bytes=80)  # so 20 for each run
    for name in ("a", "b", "c"):
        clock.now += 1
        put(store, "run", name)
    assert hashes(store, "run") == ["b", "c"]
    large = file_of("large", 70)
    store.put("run", entry_of("large", large), large)
    assert hashes(store, "run") == ["large"]
    larger = file_of("larger", 200)
    put(store, "idle", "i")
    clock.now += DAY
    store.put("run", entry_of("larger", larger), larger)
    assert hashes(store) == ["larger"]


@pytest.mark.parametrize("bound", ["max_count", "max_registrations"])
def test_invented_names_take_nothing_from_active_runs(
    where: Path | None, clock: Clock, bound: str
) -> None:
    """Registrations under many names: those of idle runs go, those of active ones stay, and
    the one too many is refused with a time at which to come back."""
    store = make(where, clock, **{bound: 64})
    put(store, "idle", "old")
    clock.now += 601
    put(store, "active", "mine")
    refused = []
    for number in range(200):
        clock.now += 0.01
        store.find("active", "mine")
        try:
            put(store, f"invented-{number}", f"t{number}")
        except OverloadedError as error:
            refused.append((error.reason, error.retry_after))
    assert store.find("active", "mine") is not None
    assert store.find("idle", "old") is None
    assert refused == [("TOKENIZERS_FULL", 60.0)] * (200 - 63)
    assert len(store.registrations()) == 64
    if where is not None:
        assert files(where) == 3 * 64
    clock.now += 599
    store.find("active", "mine")
    clock.now += 10
    put(store, "newcomer", "new")
    assert store.find("active", "mine") is not None


def test_one_more_registration_of_a_kept_content_needs_no_room(
    where: Path | None, clock: Clock
) -> None:
    store = make(where, clock, max_count=1)
    put(store, "first", "one")
    put(store, "second", "one")
    with pytest.raises(OverloadedError):
        put(store, "third", "another")
    assert len(store.registrations()) == 2


def test_a_refused_registration_changes_nothing(where: Path | None, clock: Clock) -> None:
    store = make(where, clock, max_count=2, max_per_run=1)
    put(store, "a", "one")
    put(store, "idle", "two")
    clock.now += 601
    store.find("a", "one")
    put(store, "b", "two")
    before = store.registrations()
    with pytest.raises(OverloadedError):
        put(store, "c", "three")
    assert store.registrations() == before


def test_what_was_not_used_for_long_is_forgotten(where: Path | None, clock: Clock) -> None:
    store = make(where, clock, max_idle_seconds=DAY)
    put(store, "used", "one")
    put(store, "unused", "one", t1=SpecialRole.TURN_END)
    clock.now += DAY - 1
    assert store.find("used", "one") is not None
    clock.now += 2
    assert store.find("unused", "one") is None
    assert len(store.registrations()) == 1
    store.sweep()
    assert [entry.roles for entry in store.entries()] == [{}]
    if where is not None:
        assert files(where) == 3


def test_dropping(where: Path | None, clock: Clock) -> None:
    store = make(where, clock)
    put(store, "a", "one")
    put(store, "b", "one")
    assert store.drop("c", "one") is None
    assert store.drop("a", "two") is None
    assert store.drop("a", "one") == []
    assert store.find("a", "one") is None
    assert store.find("b", "one") is not None
    (gone,) = store.drop("b", "one") or []
    assert store.read(gone) is None
    if where is not None:
        assert files(where) == 0


def test_registrations_survive_a_restart(tmp_path: Path, clock: Clock) -> None:
    names = ("plain", "../../etc/passwd", "a" * 256, "\u00e9\n/\\", "con")
    store = make(tmp_path, clock)
    for name in names:
        put(store, name, "one", t1=SpecialRole.TURN_END)
    clock.now += 100
    store.find("plain", "one")
    store.sync()
    before = store.registrations()
    assert make(tmp_path, clock).registrations() == before
    assert {path.name for path in tmp_path.iterdir()} == {"files", "contents", "runs"}
    clock.now -= DAY  # the clock was set back: nothing counts as used in the future
    assert {one.used for one, _ in make(tmp_path, clock).registrations()} == {clock.now}


def test_damage_is_no_crash(tmp_path: Path, clock: Clock) -> None:
    store = make(tmp_path, clock)
    for name in ("a", "b", "c", "d"):
        put(store, "run", name)
    by_name = {entry.tokenizer_hash: entry for entry in store.entries()}
    (tmp_path / "files" / by_name["a"].file_sha256).write_bytes(b"damaged")
    (tmp_path / "contents" / f"{by_name['b'].content}.json").write_bytes(b"[" * 100_000)
    other = json.loads((tmp_path / "contents" / f"{by_name['c'].content}.json").read_bytes())
    other["file_sha256"] = "../../../etc/passwd"
    (tmp_path / "contents" / f"{by_name['c'].content}.json").write_text(json.dumps(other))
    for name in ("0" * 64 + ".json", "note.txt"):
        (tmp_path / "runs" / name).write_text("{}")
    (tmp_path / ("0" * 64)).mkdir()
    (tmp_path / ("0" * 64) / "entry.json").write_text('{"roles": {}}')
    again = make(tmp_path, clock)
    assert hashes(again) == ["a", "d"]
    damaged = again.find("run", "a")
    assert damaged is not None
    assert again.read(damaged) is None
    assert again.find("run", "a") is None
    for name in ("a", "b", "c"):
        put(again, "run", name)
        found = again.find("run", name)
        assert found is not None
        assert again.read(found) == file_of(name)
    assert (tmp_path / ("0" * 64) / "entry.json").exists()


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999", '"7"', "[7]"])
@pytest.mark.parametrize("name", ["file_bytes", "vocabulary_size", "registered"])
def test_a_number_that_is_none_is_no_crash(
    tmp_path: Path, clock: Clock, number: str, name: str
) -> None:
    store = make(tmp_path, clock)
    put(store, "run", "one")
    put(store, "run", "two")
    (entry,) = [one for one in store.entries() if one.tokenizer_hash == "one"]
    for path in [
        *(tmp_path / "contents").glob(f"{entry.content}.json"),
        *(tmp_path / "runs").iterdir(),
    ]:
        text = path.read_text()
        if f'"{name}"' in text and '"one"' in text:
            path.write_text(re.sub(rf'"{name}": [0-9.]+', f'"{name}": {number}', text))
    assert hashes(make(tmp_path, clock)) == ["two"]


def test_what_no_registration_is_of_is_removed_at_a_start(tmp_path: Path, clock: Clock) -> None:
    store = make(tmp_path, clock)
    put(store, "run", "one")
    put(store, "run", "two")
    for path in (tmp_path / "runs").iterdir():
        if json.loads(path.read_bytes())["tokenizer_hash"] == "one":
            path.unlink()
    clock.now += 1
    # Another server may be about to write its registration.
    for path in [*(tmp_path / "files").iterdir(), *(tmp_path / "contents").iterdir()]:
        os.utime(path, (clock.now, clock.now))
    make(tmp_path, clock)
    assert files(tmp_path) == 5
    clock.now += 2 * folder_module.LEFT_BEHIND_SECONDS
    assert hashes(make(tmp_path, clock)) == ["two"]
    assert files(tmp_path) == 3


def test_servers_share_a_folder(tmp_path: Path, clock: Clock) -> None:
    first = make(tmp_path, clock, max_idle_seconds=DAY)
    put(first, "run", "one")
    put(first, "gone", "one")
    second = make(tmp_path, clock, max_idle_seconds=DAY)
    assert hashes(second, "run") == ["one"]
    second.drop("gone", "one")
    clock.now += DAY - 10
    second.find("run", "one")
    second.sync()
    clock.now += 20  # here it is idle for too long, there it is in use
    first.sync()
    assert hashes(first, "run") == ["one"]
    assert hashes(first, "gone") == []
    (entry,) = second.drop("run", "one") or []
    assert first.read(entry) is None
    assert first.find("run", "one") is None


def test_a_server_keeps_what_another_one_s_runs_have(tmp_path: Path, clock: Clock) -> None:
    first, second = make(tmp_path, clock), make(tmp_path, clock)
    put(first, "a", "one")
    put(first, "a", "one", t1=SpecialRole.PADDING)
    put(second, "b", "one")
    put(second, "c", "one", t1=SpecialRole.TURN_END)
    # One server knows nothing of the other's runs.
    assert [entry.roles for entry in first.drop("a", "one") or []] == [{1: SpecialRole.PADDING}]
    for run in ("b", "c"):
        entry = second.find(run, "one")
        assert entry is not None
        assert second.read(entry) == file_of("one")
        assert make(tmp_path, clock).find(run, "one") == entry
    assert second.drop("b", "one") != []
    assert second.drop("c", "one") != []
    assert files(tmp_path) == 0


def test_servers_that_write_at_once_leave_whole_files(tmp_path: Path, clock: Clock) -> None:
    servers = [make(tmp_path, clock, max_per_run=3) for _ in range(3)]

    def work(store: TokenizerStore) -> None:
        for number in range(40):
            put(store, "run", f"t{number % 5}")
            if number % 7 == 0:
                store.drop("run", f"t{(number + 1) % 5}")
            store.sync()

    with ThreadPoolExecutor(len(servers)) as threads:
        list(threads.map(work, servers))
    for store in (*servers, make(tmp_path, clock)):
        store.sync()
        for registration, entry in store.registrations():
            # Gone where another one removed it, and never anything else.
            assert store.read(entry) in (None, file_of(registration.tokenizer_hash))
    assert not list(tmp_path.rglob(".*"))
    put(servers[0], "run", "t0")
    kept = make(tmp_path, clock).find("run", "t0")
    assert kept is not None
    assert servers[1].read(kept) == file_of("t0")


def test_uses_reach_the_folder_without_being_asked(tmp_path: Path, clock: Clock) -> None:
    store = make(tmp_path, clock)
    put(store, "run", "one")
    clock.now += 2 * SYNC_SECONDS
    store.find("run", "one")
    store._background.submit(int).result()
    (path,) = (tmp_path / "runs").iterdir()
    assert path.stat().st_mtime == clock.now


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("at", range(3))
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, number: int, at: int
) -> None:
    """The refusal says so and can be sent again; what was begun is gone, all else works."""
    store = make(tmp_path, clock, max_per_run=1)
    put(store, "run", "one")
    calls: list[Path] = []

    def fail(path: Path, data: bytes, mode: int) -> None:
        calls.append(path)
        if len(calls) > at:
            raise OSError(number, os.strerror(number), str(path))
        path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "write_bytes", fail)
        with pytest.raises(TeacherUnavailableError) as found:
            put(store, "run", "two")
        assert found.value.reason == "TOKENIZERS_FOLDER_FAILED"
        assert found.value.retry_after is not None
        assert str(tmp_path) not in str(found.value)
        assert put(store, "run", "one") == []  # nothing to write
    assert hashes(store) == ["one"]
    assert files(tmp_path) == 3
    put(store, "run", "two")
    assert hashes(store) == ["two"]
    assert files(tmp_path) == 3


FULL = """
import resource, sys
from pathlib import Path
from tests.server.test_tokenizer_store import Clock, entry_of, make, put
from teacher_proto.errors import TeacherUnavailableError
clock = Clock()
store = make(Path(sys.argv[1]), clock)
put(store, "run", "one")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
large = b"x" * 100_000
try:
    store.put("run", entry_of("large", large), large)
except TeacherUnavailableError as error:
    print(error.reason, error.retry_after)
print([one.tokenizer_hash for one, _ in store.registrations()])
"""


def test_a_write_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["TOKENIZERS_FOLDER_FAILED 1.0", "['one']"]
    assert files(tmp_path) == 3


def test_a_file_that_cannot_be_read_is_not_forgotten(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path, clock)
    put(store, "run", "one")
    entry = store.find("run", "one")
    assert entry is not None

    def fail(self: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(TeacherUnavailableError) as found:
            store.read(entry)
        assert found.value.reason == "TOKENIZERS_FOLDER_FAILED"
    assert store.find("run", "one") == entry
    assert store.read(entry) == file_of("one")
