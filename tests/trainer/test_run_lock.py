"""One run at a time writes in a directory; the lock ends with its process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings_show import to_toml

from student_trainer.quickstart.command import move_aside
from student_trainer.run.lock import check_free, locked
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.machine import run_directory
from student_trainer.startup.start import Start
from student_trainer.train import train
from tests.trainer.processes import ENVIRONMENT, PATIENCE, serve, steps, trainer
from tests.trainer.test_run import in_directory, losses

MakeConfig = Callable[..., TrainConfig]

# Holds the directory until its standard input ends; says so, and starts what it is told.
HOLD = """
import os, subprocess, sys
from pathlib import Path
from student_trainer.run.lock import locked
with locked(Path(sys.argv[1])):
    child = ""
    if sys.argv[2] == "program":
        child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL).pid
    if sys.argv[2] == "fork":
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.write(write, b"forked")
            import signal
            signal.pause()
        os.read(read, 6)
    print(child, flush=True)
    sys.stdin.read()
"""


def holder(directory: Path, child: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory), child],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip


@pytest.mark.parametrize("child", ["", "program", "fork"])
def test_a_killed_run_leaves_no_lock_whatever_it_started(tmp_path: Path, child: str) -> None:
    directory = tmp_path / "run"
    process = holder(directory, child)
    assert process.stdout is not None
    started = process.stdout.readline().strip()
    try:
        for look in (check_free, lambda path: locked(path).__enter__()):
            with pytest.raises(ConfigurationError) as caught:
                look(directory)
            told = str(caught.value)
            assert f"{directory} is written by another run" in told
            assert f"process {process.pid} on {socket.gethostname()}" in told
            assert "choose another run.output_dir" in told
        process.kill()
        process.wait(PATIENCE)
        if started:
            os.kill(int(started), 0)  # the child is still there
        check_free(directory)
        with locked(directory), pytest.raises(ConfigurationError, match=f"process {os.getpid()}"):
            check_free(directory)
    finally:
        process.kill()
        process.communicate()
        if started:
            os.kill(int(started), signal.SIGKILL)


def test_a_lock_ends_with_its_block_and_a_plain_look_writes_nothing(tmp_path: Path) -> None:
    check_free(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path):
        pass
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigurationError, match="cannot write in"), locked(file / "run"):
        pass


def test_no_other_command_takes_a_running_runs_directory(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config()
    with locked(config.run.output_dir):
        with pytest.raises(ConfigurationError, match="is written by another run"):
            run_directory(Start(config))
        with pytest.raises(ConfigurationError, match="is written by another run"):
            move_aside(config.run.output_dir)
        with pytest.raises(ConfigurationError, match="is written by another run"):
            train(config)
    assert move_aside(config.run.output_dir) == tmp_path / "run-1"


@pytest.mark.parametrize("found", ["fresh", "resumed"])
def test_a_second_run_is_refused_and_the_first_goes_on(
    make_config: MakeConfig, tiny_model_dir: Path, tmp_path: Path, found: str
) -> None:
    with serve(tmp_path / "server", default=tiny_model_dir) as server:
        settings: dict[str, Any] = {"teacher": {"address": server.address}}
        config = make_config(**settings, checkpoint={"every": 1})
        if found == "resumed":
            train(in_directory(config, config.run.output_dir, steps=1))
        first = in_directory(config, config.run.output_dir, steps=500)
        file = tmp_path / "config.toml"
        file.write_text(to_toml(first))
        with trainer(file) as process:
            steps(process, 2)
            with trainer(file) as second:
                out, told = second.communicate(timeout=PATIENCE)
            assert second.returncode == 2
            assert out == ""
            assert f"process {process.pid} on" in told
            steps(process, 2)
            report = [sys.executable, "-m", "student_trainer", "report", str(first.run.output_dir)]
            subprocess.run(report, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
            process.kill()
            process.wait(PATIENCE)
        done = [step for step, _ in losses(first.run.output_dir)]
        assert done == list(range(1, len(done) + 1))
        train(in_directory(config, config.run.output_dir, steps=done[-1] + 1))
