"""Completion scripts of both programs."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAMS = {
    "student-trainer": ("student_trainer", "merge"),
    "teacher-server": ("teacher_server", "serve"),
}


def script(module: str, shell: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, "--print-completion", shell]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_script_names_the_commands(program: str, shell: str) -> None:
    module, command = PROGRAMS[program]
    done = script(module, shell)
    assert done.returncode == 0, done.stderr
    assert program in done.stdout
    assert command in done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_bash_completes_a_command(program: str) -> None:
    module, command = PROGRAMS[program]
    done = script(module, "bash")
    function = f"_shtab_{program.replace('-', '_')}"
    ask = (
        f"{done.stdout}\nCOMP_WORDS=({program} {command[:3]}); COMP_CWORD=1; COMP_LINE='x'; "
        f'{function}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    answer = subprocess.run(
        ["bash", "--norc", "-c", ask], capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == [command]


def test_a_shell_that_is_not_known_and_a_missing_package() -> None:
    assert script("student_trainer", "csh").returncode == 2
    code = (
        "import sys; sys.modules['shtab'] = None\n"
        "from teacher_server.cli import main\n"
        "sys.exit(main(['--print-completion', 'bash']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install shtab" in done.stderr
