"""The wheel without an extra: the client works, and the programs name what is missing."""

from __future__ import annotations

import pytest

from tests.packaging.environments import Environment

PROGRAMS = {"teacher-server": "teacher", "student-trainer": "trainer"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_version_need_no_extra(base: Environment, program: str) -> None:
    ended = base.run(program, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"usage: {program}")
    ended = base.run(program, "--version")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"{program} 0.")
    assert base.run(program, "doctor", "--help").returncode == 0


KEYS = ("run.output_dir=run", "student.model=m", "data.train=d")
SET = [part for key in KEYS for part in ("--set", key)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("teacher-server", "serve", "--model", "m"),
        ("teacher-server", "doctor", "--model", "m"),
        ("teacher-server", "top"),
        ("teacher-server", "probe"),
        ("student-trainer", "train", *SET),
        ("student-trainer", "doctor", *SET),
        ("student-trainer", "report", "run"),
        ("student-trainer", "quickstart"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_command_that_needs_an_extra_names_it_in_one_line(
    base: Environment, arguments: tuple[str, ...]
) -> None:
    extra = PROGRAMS[arguments[0]]
    ended = base.run(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"the extra '{extra}'" in line
    assert f"pip install '.[{extra}]'" in line


def test_the_client_needs_no_extra(base: Environment) -> None:
    ended = base.run(
        "python", "-c", "import teacher_proto as t; [getattr(t, n) for n in t.__all__]"
    )
    assert (ended.returncode, ended.stderr) == (0, "")
