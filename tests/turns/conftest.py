from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.conftest import (  # noqa: F401
    run_server,
    student_model_dir,
)

OWN = '''
import mmap
import os
import sys
import time
from typing import ClassVar

from student_trainer.tasks import Verdict
from student_trainer.tasks.environment import ActingTask, Environment, Observation


def says(text):
    return Observation([{"role": "user", "content": text}])


class Room(Environment):
    """Answers with the number of the turn and what it has heard; does what its row tells it."""

    def __init__(self, row):
        self.row, self.heard = row, []

    def act(self, turn):
        self.heard.append(turn.text)
        does = self.row.get("does", {}).get(str(len(self.heard)))
        if does == "raise":
            raise RuntimeError("no such door")
        if does == "hang":
            if "begun" in self.row:
                open(self.row["begun"], "w").close()
            time.sleep(3600)
        if does == "exit":
            os._exit(5)
        if does == "print":
            sys.stdout.write("x" * (2 << 20))
        if does == "memory":
            self.kept = bytearray(1 << 33)
        if does == "map":
            self.kept = mmap.mmap(-1, 1 << 36)
        if does == "library":
            raise OSError("libplan.so: failed to map segment from shared object")
        if does == "keep":
            self.kept = bytearray(100 << 20)
        if does == "open":
            self.kept = open(os.devnull)
        if does == "huge":
            return says("y" * (5 << 20))
        if does == "surrogate":
            return says("half \\ud83d of a pair \\x00 end")
        if does == "nothing":
            return None
        if does == "number":
            return says(f"process {os.getpid()}")
        if len(self.heard) >= self.row.get("turns", 3):
            return Observation(done=True)
        return says(f"turn {len(self.heard)}, heard {len(''.join(self.heard))}")

    def verdict(self):
        if self.row.get("does", {}).get("verdict") == "raise":
            raise RuntimeError("who knows")
        if "values" in self.row:
            names = [f"value_{number}" for number in range(self.row["values"])]
            return Verdict(1.0, values=dict.fromkeys(names, 1.0))
        words = sum(len(one.split()) for one in self.heard)
        return Verdict(float(len(self.heard) % 2), values={"words": words})


class Rooms(ActingTask):
    count: int = 6
    form: str = "chat"
    # A file while which is there the task cannot be prepared; with "once" in it, it is removed.
    broken: str = ""

    def prepare(self):
        if self.broken and os.path.exists(self.broken):
            with open(self.broken) as file:
                once = file.read() == "once"
            if once:
                os.remove(self.broken)
            raise RuntimeError("no door today")

    def prompts(self, split, read):
        first = 50 if split == "held_out" else 0
        for number in range(first, first + self.count):
            text = f"You are in room {number}."
            prompt = {"messages": [{"role": "user", "content": text}]}
            if self.form == "text":
                prompt = {"prompt": text}
            yield f"room {number}", {**prompt, "turns": 2 + number % 3}

    def environment(self, row):
        return Room(row)
'''


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Path]:
    """A folder with the task ``rooms_task:Rooms``."""
    (tmp_path / "rooms_task.py").write_text(OWN)
    yield tmp_path
    sys.modules.pop("rooms_task", None)
