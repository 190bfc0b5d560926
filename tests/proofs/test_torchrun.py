"""torchrun itself: it starts the ranks, and starts them again when one has died."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proofs.runs import Room, assert_equal
from tests.proofs.test_ranks_killed import STEPS, config_of, straight
from tests.support.faults import killed
from tests.trainer.processes import ENVIRONMENT

pytestmark = pytest.mark.ranks

__all__ = ["straight"]


def test_torchrun_starts_a_run_again_and_it_goes_on(served: Room, straight: Path) -> None:
    config = config_of(served, "restarted")
    folder = config.run.output_dir.parent
    faults = folder / "faults.json"
    faults.write_text(json.dumps({"1": killed("student_trainer.loop:TrainingLoop._scores", 14)}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1"]
    command += ["--nproc-per-node=2", "-m", "tests.support.torchrun_program", str(faults)]
    command += served.arguments(config)
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resuming after step \d", done.stderr), done.stderr
    assert_equal(config.run.output_dir, straight, STEPS)
