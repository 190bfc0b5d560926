"""The CUDA kernels: in Triton's interpreter here, and on a GPU under its marker."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.losses.kernel_agreement import DTYPES, SIZES, agree

pytest.importorskip("triton", reason="Triton is an extra")


def test_the_interpreted_kernels_equal_the_eager_path() -> None:
    # The interpreter has to be chosen before Triton is imported.
    run = subprocess.run(
        [sys.executable, "-m", "tests.losses.kernel_agreement"],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == len(SIZES) * len(DTYPES) + 1
    assert lines[-1] == "agree through autograd"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [*SIZES, (1024, 64, 1536, 151_936)])
def test_the_kernels_on_a_gpu_equal_the_eager_path(
    size: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    from student_trainer.losses import gathered_triton

    agree(gathered_triton, size, dtype, "cuda")
