"""The runs of a comparison one after the other, each in a child process, with one teacher."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from teacher_proto.errors import LsmError, TeacherUnavailableError

from student_trainer.commands.shared import quiet_libraries
from student_trainer.quickstart.command import ended_by_signals
from student_trainer.quickstart.server import TeacherProcess
from student_trainer.study.compare.choose import NOT_FINITE
from student_trainer.study.compare.one_run import make_run
from student_trainer.study.compare.plan import Planned, as_evaluated, config_of_run
from student_trainer.study.compare.settings import CompareSettings
from student_trainer.study.compare.store import Store
from student_trainer.study.parts.children import in_children

Note = Callable[[str], None]
LAST_WORDS = 400
# With what ``json`` refuses a number that is not finite.
NO_JSON = "Out of range float values"


@contextmanager
def served(teacher: Path, store: Store) -> Iterator[TeacherProcess]:
    """A teacher server in a process of its own, on one thread. Equal requests give equal bytes, so
    that a run that is made again is the same."""
    with tempfile.TemporaryDirectory(prefix="lsm-compare-") as scratch:
        arguments = ("--device", "cpu", "--dtype", "float32", "--deterministic")
        log, ready = store.path / "teacher-server.log", Path(scratch) / "ready.json"
        with TeacherProcess(teacher, log, ready, arguments) as server:
            yield server


def make_runs(
    settings: CompareSettings,
    planned: Sequence[Planned],
    store: Store,
    models: Path,
    server: TeacherProcess,
    at_once: int,
    facts: Mapping[str, Any],
    note: Note,
) -> int:
    """Makes those runs that the store does not have, in this order; returns how many failed.

    Each is made in a child process, so that nothing of one is left for the next. What it prints
    is in ``work/NAME.log``.

    Args:
        server: of the teacher, as ``served`` gives it.
        at_once: how many are made at the same time.

    Raises:
        TeacherUnavailableError: the teacher's server ended.
    """
    missing = [one for one in planned if not store.has(one)]
    store.work.mkdir(parents=True, exist_ok=True)
    jobs = [
        (
            partial(_one, settings, one, store, models, server.grpc_address, facts),
            store.work / f"{one.name}.log",
        )
        for one in missing
    ]
    failed = 0
    with closing(in_children(jobs, at_once)) as ended:
        for number, (place, code) in enumerate(ended, 1):
            if why := server.ended():
                raise TeacherUnavailableError(
                    why, where="study compare", fix="start it again: finished runs are kept"
                )
            one, log = missing[place], jobs[place][1]
            good = code == 0 and store.has(one)
            if not good:
                failed += 1
                words = log.read_text(encoding="utf-8", errors="replace").strip()[-LAST_WORDS:]
                if not store.has_failed(one):
                    store.write_failure(one, words or f"exit code {code}")
            note(f"{number}/{len(missing)} {one.name}: {_told(store, one) if good else 'FAILED'}")
    return failed


def _one(
    settings: CompareSettings,
    planned: Planned,
    store: Store,
    models: Path,
    address: str,
    facts: Mapping[str, Any],
) -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    folder = store.work / planned.name
    config = config_of_run(settings, planned, models, folder, address)
    evaluated = config.model_copy(update={"rollout": as_evaluated(settings, planned)})
    store.forget_failure(planned)
    before = store.before_of(planned)
    try:
        with ended_by_signals():
            store.write(make_run(planned, config, evaluated, settings.noise, before, facts))
    except (LsmError, ValueError) as error:
        if reason := reason_of(error):
            store.write_failure(planned, str(error), reason)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def reason_of(error: Exception) -> str:
    """The reason of an error of this project; of a value of the run that is not finite, which
    no file of it can hold, that of an update that is not; else empty."""
    if isinstance(error, LsmError):
        return error.reason
    return NOT_FINITE if str(error).startswith(NO_JSON) else ""


def _told(store: Store, planned: Planned) -> str:
    (record,) = store.records([planned])
    last = record["course"][-1]
    values = ", ".join(
        f"{name} {value:.3f}"
        for name, value in last.items()
        if name == "reverse_kl" or name.startswith("pass_at_1")
    )
    return f"{record['seconds']:.0f} s, {values}"
