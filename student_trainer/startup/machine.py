"""Steps that look at this machine: the run's directory, trackers, hub, device."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import torch
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.checks import check_device, check_folder

from student_trainer.report.hub import check_can_push
from student_trainer.run.checkpoint import load_state
from student_trainer.run.directory import find_checkpoint
from student_trainer.run.lock import check_free
from student_trainer.run.resume import check_settings, check_sources
from student_trainer.settings.dotted import sources
from student_trainer.startup.start import Start
from student_trainer.trackers import check_installed

FILES = (
    "config.toml",
    "machine.json",
    "metrics.jsonl",
    "samples.json",
    "summary.json",
    "report.html",
)
FOLDERS = ("checkpoints", "evaluation", "model", "rollouts")


def run_directory(start: Start) -> str:
    """Where the run is written, and where it begins.

    Raises:
        ConfigurationError: the directory cannot be written, another run writes in it, or
            the checkpoint that was asked for cannot be used.
    """
    if not start.world.writes:
        return "rank 0 writes it"
    try:
        if is_there(start.run.path) and not start.run.path.is_dir():
            raise ConfigurationError(
                f"{start.run.path} is no directory",
                where="run.output_dir",
                fix="move it away, or choose another directory",
            )
        check_folder(start.run.path, 0, "run.output_dir")
        check_layout(start.run.path)
    except OSError as error:  # a name that is too long, a file system that is gone
        raise ConfigurationError(
            f"{start.run.path} cannot be used: {error.strerror}",
            where="run.output_dir",
            fix="choose another directory",
        ) from error
    if not start.holds_lock:
        check_free(start.run.path)
    start.checkpoint = find_checkpoint(start.run, start.config.checkpoint.resume)
    if start.checkpoint is None:
        return f"{start.run.path}, starts from the beginning"
    start.resumed = load_state(start.checkpoint)
    start.now = start.resumed.now
    return f"continues from {start.checkpoint}"


def checkpoint(start: Start) -> str:
    """Whether the settings are those that the checkpoint was made with.

    Raises:
        ConfigurationError: as ``check_settings`` and ``check_sources``.
    """
    if start.resumed is None:
        return "there is none"
    steps, made = start.config.run.steps, start.resumed.step
    allowed = start.config.checkpoint.allow_changed
    check_sources(start.resumed, sources(start.config), allowed)
    check_settings(start.resumed, start.config.model_dump(mode="json"), allowed)
    if made == steps:
        start.warn(
            f"all {steps} steps are made: the model is saved, evaluated and reported again, and "
            "nothing is trained (run.steps)"
        )
    return f"of step {made} of {steps}, with these settings"


def is_there(path: Path) -> bool:
    """Whether something has this name, were it a link to nothing. Raises OSError for what
    cannot be a name."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def check_layout(directory: Path) -> None:
    """Refuses a directory in which something else is where a run writes.

    Raises:
        ConfigurationError: a file is where a folder will be, or the other way round, or
            one of them cannot be written.
    """
    for names, is_kind, kind in (
        (FILES, stat.S_ISREG, "file"),
        (FOLDERS, stat.S_ISDIR, "folder"),
    ):
        for path in (directory / name for name in names):
            if not os.path.lexists(path):
                continue
            if not (path.exists() and is_kind(path.stat().st_mode)):
                what = f"{path} is no {kind}, and a run writes one there"
            elif not os.access(path, os.W_OK):
                what = f"{path} cannot be written"
            else:
                continue
            raise ConfigurationError(
                what, where="run.output_dir", fix="move it away, or choose another directory"
            )


def trackers(start: Start) -> str:
    """Raises ConfigurationError when the package of a tracker is missing."""
    if not start.world.writes:
        return "rank 0 tells them"
    names = start.config.tracking.trackers
    check_installed(names)
    return ", ".join(names) or "none but the run's own files"


def hub(start: Start) -> str:
    """Raises ConfigurationError or LsmError when the final model could not be pushed."""
    repo = start.config.hub.repo if start.world.writes else None
    if repo is None:
        return "the final model stays on this machine"
    check_can_push(repo)
    return f"the final model is pushed to {repo}"


def device(start: Start) -> str:
    """Raises ConfigurationError when torch cannot use ``student.device``."""
    threads = torch.get_num_threads()
    return check_device(start.config.student.device, "student.device", torch.cuda, threads)
