"""How both programs start and end: the options they share, their exit codes, and one line
for every known error (docs/errors.md)."""

from __future__ import annotations

import argparse
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence

from teacher_proto.errors import EXIT_RUNTIME, ConfigurationError, LsmError

EXIT_INTERRUPTED = 130
SHELLS = ("bash", "zsh", "fish")


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--version`` and ``--print-completion SHELL``; each prints its text and ends."""
    parser.add_argument(
        "--version", action=_PrintVersion, nargs=0, help="print the version, and stop"
    )
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=SHELLS,
        help="print a completion script for this shell, and stop",
    )


class _PrintVersion(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: object,
        values: object,
        option: object = "",
    ) -> None:
        from teacher_proto.program.distribution import VERSION

        sys.stdout.write(f"{parser.prog} {VERSION}\n")
        parser.exit()


class _PrintCompletion(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, shell: object, option: object = ""
    ) -> None:
        try:
            import shtab
        except ImportError as error:
            raise ConfigurationError(
                "shell completion needs the package shtab",
                where="--print-completion",
                fix="run: pip install shtab",
            ) from error
        sys.stdout.write(shtab.complete(parser, shell=str(shell)) + "\n")
        parser.exit()


def run_program(
    main: Callable[[Sequence[str] | None], int],
    argv: Sequence[str] | None = None,
    extra: str | None = None,
    speaker: str = "",
) -> int:
    """Runs ``main(argv)`` and returns the exit code for ``sys.exit``.

    An LsmError becomes one line ``error: ...`` on standard error and the error's
    own exit code. So does a module that is missing because ``extra``, the optional
    dependencies of this program, is not installed. Ctrl-C gives 130; a reader of
    standard output that went away gives 1 and no message; any other exception gives
    its traceback and 1. SystemExit passes through.

    Args:
        speaker: stands before an error's message, where several processes write one log.
    """
    try:
        code = main(argv)
        sys.stdout.flush()
    except LsmError as error:
        return _report(error, speaker)
    except ModuleNotFoundError as error:
        missing = extra and _missing_extra(extra, error)
        if not missing:
            traceback.print_exc()
            return EXIT_RUNTIME
        return _report(missing, speaker)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if not _output_is_gone():
            traceback.print_exc()
        return EXIT_RUNTIME
    except Exception:
        traceback.print_exc()
        return EXIT_RUNTIME
    return code


def _report(error: LsmError, speaker: str) -> int:
    sys.stderr.write(f"error: {speaker}{' '.join(str(error).split())}\n")
    return error.exit_code


def _missing_extra(extra: str, error: ModuleNotFoundError) -> ConfigurationError | None:
    """The error for an extra that is not installed; None when all its packages are there."""
    from teacher_proto.program.distribution import install_command, missing_packages

    missing = missing_packages(extra)
    if not missing:
        return None
    return ConfigurationError(
        f"no module {error.name}: of the extra {extra!r}, {', '.join(missing)} are not installed",
        fix=install_command(extra),
    )


def _output_is_gone() -> bool:
    """Whether standard output is a pipe nobody reads; it then leads nowhere, so that
    the interpreter's own last flush stays quiet."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # no events asked for: errors and hang-ups only
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
