"""The CUDA kernels against the eager path. As a program, with TRITON_INTERPRET=1 set
before Triton is imported, it compares them in Triton's interpreter on the CPU."""

from __future__ import annotations

from typing import Any

import torch

from student_trainer.losses.parts import gathered

SIZES = [(1, 2, 8, 11), (16, 5, 64, 37), (37, 9, 72, 60)]
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}


def agree(kernels: Any, size: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> None:
    rows, support, width, vocabulary = size
    g = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, width, generator=g).to(dtype)
    weight = torch.randn(vocabulary, width, generator=g).to(dtype)
    # Concentrated, with repeats within a row, as slots that are not valid have.
    ids = (vocabulary * torch.rand(rows, support, generator=g) ** 3).long()
    upstream = torch.randn(rows, support, generator=g)
    before = torch.randn(vocabulary, width, generator=g).to(dtype)
    target = before.clone()
    expected = [
        gathered._project(hidden, weight, ids),
        gathered._weighted_rows(weight, ids, upstream),
        target,
    ]
    gathered._add_head_gradient(target, hidden, ids, upstream)
    there = before.to(device)
    hidden, weight, ids, upstream = (x.to(device) for x in (hidden, weight, ids, upstream))
    actual = [
        kernels.project(hidden, weight, ids),
        kernels.weighted_rows(weight, ids, upstream),
        there,
    ]
    kernels.add_head_gradient(there, hidden, ids, upstream)
    for name, a, e in zip(("logits", "hidden", "head"), actual, expected, strict=True):
        assert a.shape == e.shape
        error = (a.cpu().double() - e.double()).norm() / e.double().norm()
        assert float(error) < TOLERANCE[dtype], name


def agree_through_autograd(kernels: Any) -> None:
    """The public function, its gradients and its choice of kernels' results."""
    g = torch.Generator().manual_seed(2)
    hidden = torch.randn(20, 24, generator=g).requires_grad_()
    weight = torch.randn(90, 24, generator=g).requires_grad_()
    ids = torch.randint(0, 90, (20, 6), generator=g)
    upstream = torch.randn(20, 6, generator=g)

    def gradients() -> list[torch.Tensor]:
        logits = gathered.gathered_logits(hidden, gathered.Head(weight), ids)
        return [logits.detach(), *torch.autograd.grad(logits, [hidden, weight], upstream)]

    expected = gradients()
    gathered._kernels = lambda parameter: kernels
    for a, e in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


def main() -> None:
    import triton

    from student_trainer.losses.parts import gathered_triton

    assert triton.knobs.runtime.interpret, "set TRITON_INTERPRET=1"
    for size in SIZES:
        for dtype in DTYPES:
            agree(gathered_triton, size, dtype, "cpu")
            print("agree", size, dtype)
    agree_through_autograd(gathered_triton)
    print("agree through autograd")


if __name__ == "__main__":
    main()
