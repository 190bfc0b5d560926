"""How a program ends, seen from outside."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from teacher_proto import errors
from teacher_proto.program import distribution
from teacher_proto.program.entrypoint import run_program

BEGIN = """
import sys
from teacher_proto.errors import *
from teacher_proto.program.entrypoint import run_program
"""
END = "\nsys.exit(run_program(main, ['x']))"
REQUIRES = [
    "numpy<3,>=1.26",
    "not-there<2,>=1; extra == 'some'",
    'nor_this[more]<2; (python_version > "3") and extra == "some"',
    "grpcio>=1; extra == 'some'",
    "pytest; extra == 'other'",
    "absent; extra == 'something'",
]
WITHOUT_EXTRA = """
from teacher_proto.program import distribution
distribution.missing_packages = lambda extra: ["not-there"] if extra == "some" else []
def main(argv):
  import not_there.at_all
sys.exit(run_program(main, [], extra=%r))
"""


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


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "requires", lambda _: REQUIRES)
    assert distribution.missing_packages("some") == ["not-there", "nor_this"]
    assert distribution.missing_packages("other") == []
    fix = distribution.install_command("some")
    assert fix.startswith("run pip install '.[some]' in the checkout, or pip install 'lsm_distill-")
    assert fix.endswith(".whl[some]'")


def test_a_module_of_a_missing_extra_is_one_line() -> None:
    ended = run(WITHOUT_EXTRA % "some")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert ended.stderr.startswith("error: no module not_there: of the extra 'some', not-there")
    assert "pip install '.[some]'" in ended.stderr


@pytest.mark.parametrize("extra", ["whole", None])
def test_a_module_of_no_extra_shows_its_traceback(extra: str | None) -> None:
    ended = run(WITHOUT_EXTRA % extra)
    assert ended.returncode == 1
    assert ended.stderr.endswith("ModuleNotFoundError: No module named 'not_there'\n")


@pytest.mark.parametrize("program", ["teacher-server", "student-trainer"])
def test_both_programs_print_the_same_version(program: str) -> None:
    module = program.replace("-", "_")
    ended = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True
    )
    assert ended.stdout == f"{program} {distribution.VERSION}\n"


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
