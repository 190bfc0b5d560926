"""How a program ends, seen from outside."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from teacher_proto import errors
from teacher_proto.program.entrypoint import run_program

BEGIN = """
import sys
from teacher_proto.errors import *
from teacher_proto.program.entrypoint import run_program
"""
END = "\nsys.exit(run_program(main, ['x']))"


def run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"{BEGIN}{body}{END}"], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("code", [0, 5])
def test_the_exit_code_of_main_is_the_programs(code: int) -> None:
    ended = run(f"def main(argv):\n  print(argv)\n  return {code}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "['x']\n", "")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("LsmError", 1),
        ("EngineError", 1),
        ("ConfigurationError", 2),
        ("InvalidRequestError", 2),
        ("UnknownTeacherError", 2),
        ("ContractMismatchError", 3),
        ("PoisonedReplyError", 3),
        ("TeacherUnavailableError", 4),
        ("DeadlineError", 4),
        ("OverloadedError", 75),
    ],
)
def test_known_errors_are_one_line(kind: str, code: int) -> None:
    body = f"def main(argv):\n  raise {kind}('a\\nb', where='c', fix='d')"
    ended = run(body)
    assert (ended.returncode, ended.stderr) == (code, "error: c: a b. Fix: d\n")
    assert getattr(errors, kind).exit_code == code


def test_unexpected_errors_show_their_traceback() -> None:
    ended = run("def main(argv):\n  raise KeyError('x')")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "KeyError: 'x'" in ended.stderr


def test_an_interrupt() -> None:
    ended = run("def main(argv):\n  raise KeyboardInterrupt")
    assert (ended.returncode, ended.stderr) == (130, "")


def test_a_usage_error_of_argparse_passes_through() -> None:
    def main(argv: object) -> int:
        raise SystemExit(2)

    with pytest.raises(SystemExit):
        run_program(main)


@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}])
@pytest.mark.parametrize("lines", ["while True: print('y' * 1000)", "print('y' * 100)\n  return 0"])
def test_a_reader_that_went_away_is_no_news(buffering: dict[str, str], lines: str) -> None:
    wait = "sys.stdin.read()"
    environment = {key: os.environ[key] for key in os.environ if key != "PYTHONUNBUFFERED"}
    program = subprocess.Popen(
        [sys.executable, "-c", f"{BEGIN}def main(argv):\n  {wait}\n  {lines}{END}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | buffering,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.close()
    program.stdin.close()
    assert program.stderr.read() == ""
    assert program.wait(60) == 1
    program.stderr.close()


def test_a_broken_pipe_to_somewhere_else_is_told() -> None:
    ended = run("def main(argv):\n  raise BrokenPipeError('a socket')")
    assert ended.returncode == 1
    assert "BrokenPipeError: a socket" in ended.stderr
