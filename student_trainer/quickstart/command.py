"""``student-trainer quickstart``: a teacher, a student and a training run, from nothing."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from teacher_proto.errors import ConfigurationError, LsmError, TeacherUnavailableError

if TYPE_CHECKING:
    from rich.console import Console

    from student_trainer.settings.train import TrainConfig

FOLDER = Path(__file__).parent
PACKAGED_SETTINGS = FOLDER / "quickstart.toml"
# Files by which a run directory is recognised; no other directory is ever moved.
RUN_MARKS = (".lock", "config.toml", "metrics.jsonl", "summary.json", "teacher-server.log")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="run directory; an older run there is moved aside (runs/quickstart, "
        "with --cross-tokenizer runs/quickstart-cross)",
    )
    parser.add_argument(
        "--cross-tokenizer",
        action="store_true",
        help="a student with another tokenizer than the teacher's, made on the spot",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="optimiser steps")
    parser.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="only prepare the two models; DIR/teacher and DIR/student will lead to them",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change one key of the training settings, such as optimizer.lr=5e-5; again for more",
    )


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console(stderr=True)
    if arguments.models is not None:
        from student_trainer.quickstart.models import link_models

        link_models(arguments.models, *_models(console, arguments.cross_tokenizer))
        return 0
    if arguments.output is None:
        arguments.output = Path("runs/quickstart" + "-cross" * arguments.cross_tokenizer)
    started = time.monotonic()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Teacher and student share the cores: a thread that waits must not spin on a core
    # that the other process needs. torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with ended_by_signals():
        # Settings first: a wrong one is an error before any work.
        placeholder = Path("to-be-prepared")
        load_config(
            arguments.overrides,
            run_flags(arguments, placeholder, "127.0.0.1:1"),
            settings_files(arguments),
        )
        aside = move_aside(arguments.output)
        if aside is not None:
            console.print(f"moved the older run to {aside}", style="yellow", highlight=False)
        arguments.output.mkdir(parents=True, exist_ok=True)
        teacher, student = _models(console, arguments.cross_tokenizer)
        _train(console, arguments, teacher, student)
    from student_trainer.report.table import print_closing

    print_closing(arguments.output)
    Console().print(f"{time.monotonic() - started:.0f} s in all", highlight=False)
    return 0


def _models(console: Console, cross_tokenizer: bool) -> tuple[Path, Path]:
    """The folders of the teacher and of the student."""
    from student_trainer.quickstart.models import prepare_models

    def note(text: str) -> None:
        console.print(text, style="dim", highlight=False)

    _quiet()
    return prepare_models(note, FOLDER / "train.jsonl", cross_tokenizer=cross_tokenizer)


def _train(console: Console, arguments: argparse.Namespace, teacher: Path, student: Path) -> None:
    from student_trainer.quickstart.server import TeacherProcess

    output: Path = arguments.output
    with tempfile.TemporaryDirectory(prefix="lsm-quickstart-") as scratch:
        server = TeacherProcess(
            model=teacher,
            log=output / "teacher-server.log",
            ready_file=Path(scratch) / "ready.json",
            arguments=("--engine", "transformers", "--device", "cpu", "--dtype", "float32"),
        )
        console.print("starting the teacher server", style="dim", highlight=False)
        with server:
            console.print(
                f"teacher ready at {server.grpc_address} (process {server.pid})",
                style="dim",
                highlight=False,
            )
            flags = run_flags(arguments, student, server.grpc_address)
            config = load_config(arguments.overrides, flags, settings_files(arguments))
            from student_trainer.train import train

            try:
                train(config)
            except LsmError as error:
                if why := server.ended():
                    raise TeacherUnavailableError(
                        why, where="quickstart", fix=f"see {server.log} for all of it"
                    ) from error
                raise
            console.print("stopping the teacher server", style="dim", highlight=False)


def run_flags(arguments: argparse.Namespace, student: Path, address: str) -> dict[str, Any]:
    """The settings that the command itself decides, by key."""
    flags: dict[str, Any] = {
        "run.output_dir": str(arguments.output),
        "student.model": str(student),
        "teacher.address": address,
        "data.train": str(FOLDER / "train.jsonl"),
        "data.held_out": str(FOLDER / "held_out.jsonl"),
    }
    if arguments.steps is not None:
        flags["run.steps"] = arguments.steps
    return flags


def settings_files(arguments: argparse.Namespace) -> list[Path]:
    """The packaged settings. Those across tokenizers override some of the others."""
    across = [FOLDER / "quickstart-cross.toml"] if arguments.cross_tokenizer else []
    return [PACKAGED_SETTINGS, *across]


def load_config(
    overrides: Sequence[str], flags: Mapping[str, Any], files: Sequence[Path] = (PACKAGED_SETTINGS,)
) -> TrainConfig:
    """The packaged settings with the caller's changes. Raises ConfigurationError."""
    from teacher_proto.program.settings import load_settings

    from student_trainer.settings.resolve import ENV_PREFIX
    from student_trainer.settings.train import TrainConfig

    decided = sorted(key for text in overrides if (key := text.partition("=")[0].strip()) in flags)
    if decided:
        raise ConfigurationError(
            f"the quickstart sets {decided[0]} itself",
            where=f"--set {decided[0]}",
            fix="use --output and --steps, or run student-trainer train with your own settings",
        )
    settings: TrainConfig = load_settings(
        TrainConfig,
        list(files),
        ENV_PREFIX,
        list(overrides),
        flags,
        {"run.steps": "--steps", "run.output_dir": "--output"},
    ).settings
    return settings


def move_aside(output: Path) -> Path | None:
    """Frees the run directory: an older run there is moved to the next free number.

    Returns:
        Where the older run is now; None if there was none.

    Raises:
        ConfigurationError: the directory holds something that is not a run, or a run
            that has not ended.
    """
    from student_trainer.run.lock import check_free

    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not output.is_dir() or not any((output / mark).exists() for mark in RUN_MARKS):
        raise ConfigurationError(
            "it exists and is not a run directory",
            where=f"--output {output}",
            fix="choose another directory",
        )
    check_free(output)
    number = 1
    while (aside := output.with_name(f"{output.name}-{number}")).exists():
        number += 1
    shutil.move(output, aside)
    return aside


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP unwind as Ctrl-C does, so that the server is stopped."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _quiet() -> None:
    """Silences the libraries and sends our own warnings to standard error."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
