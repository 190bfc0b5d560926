"""The CUDA kernels: in Triton's interpreter here, and on a GPU under its marker."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.losses.kernel_agreement import DTYPES, SIZES, agree

pytest.importorskip("triton", reason="Triton is an extra")

TRITON_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
}


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


def test_kernels_are_launched_on_the_device_of_their_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Triton itself launches on the current device. The launches are fakes here, and so is the
    tensor on a GPU: this holds without one."""
    from student_trainer.losses.parts import gathered_triton

    with FakeTensorMode():
        chosen = gathered_triton._launching_on(torch.empty(1, device="cuda:1"))
    assert isinstance(chosen, torch.cuda.device)
    assert chosen.idx == 1
    ids = torch.tensor([[0, 2], [1, 2], [2, 0]])
    assert isinstance(gathered_triton._launching_on(ids), contextlib.nullcontext)
    current: list[torch.Tensor] = []
    launches: list[bool] = []

    @contextlib.contextmanager
    def using(tensor: torch.Tensor) -> Iterator[None]:
        current.append(tensor)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, grid: Any) -> Callable[..., None]:
            return lambda *arguments: launches.append([t is ids for t in current] == [True])

    monkeypatch.setattr(gathered_triton, "_launching_on", using)
    names = ("_project_kernel", "_hidden_gradient_kernel", "_head_gradient_kernel")
    for name in names:
        monkeypatch.setattr(gathered_triton, name, Kernel())
    hidden, weight, coefficients = torch.ones(3, 8), torch.ones(4, 8), torch.ones(3, 2)
    gathered_triton.project(hidden, weight, ids)
    gathered_triton.weighted_rows(weight, ids, coefficients)
    gathered_triton.add_head_gradient(weight, hidden, ids, coefficients)
    assert launches == [True] * len(names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_a_gpu(
    capability: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To machine code, which takes no GPU: the interpreter accepts what the compiler does not."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from student_trainer.losses.parts import gathered_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled: list[str] = []

    class Compiler:
        """Compiles a kernel for the arguments of a launch, and launches nothing."""

        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            return self.compile

        def compile(self, *arguments: Any) -> None:
            params = self.kernel.params
            assert len(arguments) == len(params)
            signature, constants = {}, {}
            for param, value in zip(params, arguments, strict=True):
                if param.is_constexpr:
                    signature[param.name], constants[param.name] = "constexpr", value
                elif isinstance(value, torch.Tensor):
                    signature[param.name] = "*" + TRITON_TYPES[value.dtype]
                else:
                    assert isinstance(value, int)
                    signature[param.name] = "i32"
            source = ASTSource(self.kernel, signature, constexprs=constants)
            found = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            assert len(found.asm["cubin"]) > 1000
            compiled.append(self.kernel.__name__)

    names = ("_project_kernel", "_hidden_gradient_kernel", "_head_gradient_kernel")
    for name in names:
        monkeypatch.setattr(gathered_triton, name, Compiler(getattr(gathered_triton, name)))
    hidden, weight = torch.ones(20, 40, dtype=dtype), torch.ones(50, 40, dtype=dtype)
    ids, coefficients = torch.arange(60).reshape(20, 3) % 50, torch.ones(20, 3)
    gathered_triton.project(hidden, weight, ids)
    gathered_triton.weighted_rows(weight, ids, coefficients)
    gathered_triton.add_head_gradient(weight, hidden, ids, coefficients)
    assert compiled == list(names)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [*SIZES, (1024, 64, 1536, 151_936)])
def test_the_kernels_on_a_gpu_equal_the_eager_path(
    size: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    from student_trainer.losses.parts import gathered_triton

    agree(gathered_triton, size, dtype, "cuda")


@pytest.mark.gpu
def test_the_kernels_work_on_a_gpu_that_is_not_the_current_one() -> None:
    from student_trainer.losses.parts import gathered_triton

    if torch.cuda.device_count() < 2:
        pytest.skip("it needs two GPUs")
    with torch.cuda.device(0):
        agree(gathered_triton, SIZES[0], torch.float32, "cuda:1")
