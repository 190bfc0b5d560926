"""Signals and progress."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys

import pytest

from student_trainer.run.progress import Progress
from student_trainer.run.signals import Stopped, Stopper

LINE = {"step": 2, "loss": 0.5, "response_length_mean": 9.0, "tokens_per_second": 100.0}
SHORT = "step 2/3  loss 0.5000  length 9  cut none  100 tokens/s\n"


def test_the_first_signal_lets_the_step_finish_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stopper() as stopper:
        stopper.raise_if_requested()
        with stopper.step():
            signal.raise_signal(signal.SIGTERM)
            assert stopper.requested == signal.SIGTERM
            with pytest.raises(Stopped) as caught:
                signal.raise_signal(signal.SIGINT)
            assert caught.value.code == 130
        with pytest.raises(Stopped) as caught:
            stopper.raise_if_requested()
        assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_may_be_given_up_ends_at_the_first_signal() -> None:
    with Stopper() as stopper:
        with pytest.raises(Stopped), stopper.step(), stopper.interruptible():
            signal.raise_signal(signal.SIGTERM)
        assert not stopper.at_once
        with pytest.raises(Stopped), stopper.step(), stopper.interruptible():
            pytest.fail("a signal came before")
    with Stopper() as stopper, stopper.step():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
        assert stopper.at_once, "what it interrupted may be half done"


def test_outside_a_step_a_signal_ends_at_once() -> None:
    with Stopper() as stopper:
        with stopper.step():
            pass
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        assert not stopper.at_once


def test_without_a_terminal_a_step_is_a_short_line() -> None:
    stream = io.StringIO()
    with Progress(3, 0, stream) as progress:
        progress.phase("training")
        progress.step(LINE)
    assert stream.getvalue() == SHORT


@pytest.mark.parametrize("variable", [None, "NO_COLOR", "TQDM_DISABLE"])
def test_on_a_terminal_there_is_a_bar(
    variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "TQDM_DISABLE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as stream, Progress(3, 0, stream) as progress:
        progress.step(LINE)
    shown = _read_to_end(master).decode()
    if variable == "TQDM_DISABLE":
        assert shown.replace("\r\n", "\n") == SHORT
    else:
        assert "loss 0.5000" in shown
        assert "2/3" in shown
        assert ("\x1b[3" in shown) == (variable is None), "colour unless NO_COLOR"


def _read_to_end(master: int) -> bytes:
    """What was written to a terminal whose other side is closed. It may come in
    pieces; Linux ends it with EIO, other systems with nothing."""
    pieces = []
    try:
        while piece := os.read(master, 65536):
            pieces.append(piece)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    finally:
        os.close(master)
    return b"".join(pieces)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from student_trainer.cli import build_parser\n"
        "build_parser().format_help()\n"
        "heavy = {'torch', 'transformers', 'grpc', 'numpy', 'pydantic', 'peft', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
