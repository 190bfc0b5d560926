"""Where a study's figures come from: command, commit and versions, which stand beside them."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from teacher_proto.program.distribution import VERSION

from student_trainer.run.machine import describe_machine

SOURCES = ("*.py", "*.toml")


def origin(study: str, options: Mapping[str, Any], operands: Sequence[str] = ()) -> dict[str, Any]:
    """The command that repeats a study, the commit and version of its code, and the machine.

    Args:
        study: its name.
        options: the command's options by name. Those that are None or False are left out,
            sequences are joined by commas, and of a path only the last part is told.
        operands: what follows the study's name without a name of its own.
    """
    parts = ["student-trainer", "study", study, *operands]
    for name, value in options.items():
        if value is not None and value is not False:
            parts.append(f"--{name.replace('_', '-')}")
            parts += [] if value is True else [written(value)]
    return {
        "command": shlex.join(parts),
        "commit": commit(),
        "version": VERSION,
        "machine": describe_machine(torch.device("cpu")),
    }


def written(value: Any) -> str:
    """An option's value as it is typed."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def commit(file: Path = Path(__file__)) -> str | None:
    """The commit that ``file`` is checked out of, with "+changes" where sources differ from it;
    None where no repository has the file, as in an installed wheel."""
    folder = file.resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        top = git("rev-parse", "--show-toplevel")
        changed = git("-C", top, "status", "--porcelain", "-uno", "--", *SOURCES)
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
