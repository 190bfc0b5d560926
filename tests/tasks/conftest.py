from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A module of a user's own. What a response says is what its verifier does.
OWN = '''
"""Tasks of a user's own."""
import os
import signal
import socket
import subprocess
import time
import warnings
from pathlib import Path

from pydantic import Field
from student_trainer.tasks import Task, Verdict

kept = []


class Words(Task):
    count: int = Field(default=6, description="How many.")

    def prompts(self, split, read):
        begin = 100 if split == "held_out" else 0
        for number in range(begin, begin + self.count):
            yield f"word {number}", {"prompt": f"the word {number} is", "answer": number}

    def verify(self, row, response):
        right = sum(letter == "a" for letter in response)
        return Verdict(min(right, 2) / 2, values={"letters": len(response)})


class Does(Words):
    def verify(self, row, response):
        if response == "hang":
            time.sleep(3600)
        if response == "spin":
            while True:
                pass
        if response == "memory":
            kept.append(bytearray(8 << 30))
        if response == "slowly memory":
            while True:
                kept.append([0] * 100_000)
        if response == "print":
            for _ in range(64):
                print("x" * 65_536)
        if response == "print a little":
            print("x" * 1000)
        if response == "warn":
            os.write(2, b"x" * 4_000_000)
        if response == "raise":
            raise ValueError("of its own\\nand more")
        if response == "recursion":
            return self.verify(row, response)
        if response == "exit":
            raise SystemExit(3)
        if response == "end":
            os._exit(5)
        if response == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if response == "nothing":
            return None
        if response == "cannot":
            return Verdict(None, "too hard")
        if response == "long reason":
            return Verdict(None, "y" * 10_000_000)
        if response == "many values":
            return Verdict(1.0, values={str(n): 1.0 for n in range(1000)})
        if response == "above":
            return Verdict(1.5)
        if response == "no reason":
            return Verdict(1.0, reason=None)
        if response == "changed":
            verdict = Verdict(1.0, values={"changed": 1.0})
            verdict.values["changed"] = float("nan")
            return verdict
        if response.startswith("name "):
            return Verdict(1.0, values={response.removeprefix("name "): 1.0})
        if response == "number":
            return Verdict(1.0, values={"number": os.getpid()})
        if response in ("leave and hang", "leave and end"):
            child = subprocess.Popen(["sleep", "3600"])
            Path(row["path"]).write_text(str(child.pid))
            if response == "leave and end":
                os._exit(5)
            time.sleep(3600)
        if response == "network":
            try:
                with socket.create_connection(("127.0.0.1", row["port"]), timeout=5):
                    return Verdict(0.0)
            except OSError:
                return Verdict(1.0)
        if response == "file":
            Path(row["path"]).write_bytes(b"x" * (4 << 20))
        if response == "environment":
            return Verdict(float("A_SECRET_TOKEN" not in os.environ))
        return Verdict(1.0, values={"characters": len(response)})


class Variable(Does):
    def prepare(self):
        if "A_SECRET_TOKEN" not in os.environ:
            raise LookupError("no A_SECRET_TOKEN\\nand more")


class Slow(Does):
    path: str

    def prepare(self):
        Path(self.path).write_text("it prepares")
        time.sleep(3600)
'''


@pytest.fixture
def own_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a module ``own_tasks``, which is forgotten afterwards."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own_tasks.py").write_text(OWN)
    yield folder
    sys.modules.pop("own_tasks", None)
