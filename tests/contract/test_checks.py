"""What a doctor's check of the device finds, on machines that are not here."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.checks import MIB, check_device


@dataclass(frozen=True)
class Gpus:
    """A ``torch.cuda`` with so many GPUs."""

    count: int

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def get_device_name(self, device: int, /) -> str:
        return f"GPU {device}"

    def mem_get_info(self, device: int, /) -> tuple[int, int]:
        return 3 * MIB, 4 * MIB


@pytest.mark.parametrize(
    ("device", "gpus", "found"),
    [
        ("cpu", 2, "the CPU is used, 5 threads"),
        ("auto", 0, "the CPU is used, 5 threads; torch sees no GPU"),
        ("auto", 2, "GPU 0, 3 of 4 MiB free"),
        ("cuda", 1, "GPU 0, 3 of 4 MiB free"),
        ("cuda:1", 2, "GPU 1, 3 of 4 MiB free"),
    ],
)
def test_a_device_that_is_there(device: str, gpus: int, found: str) -> None:
    assert check_device(device, "here", Gpus(gpus), threads=5) == found


@pytest.mark.parametrize(
    ("device", "gpus", "why"),
    [
        ("cuda", 0, "torch sees 0 GPUs"),
        ("cuda:2", 2, "torch sees 2 GPUs"),
        ("cuda:", 2, "none of auto, cpu, cuda and cuda:N"),
        ("auto:1", 2, "none of auto, cpu, cuda and cuda:N"),
    ],
)
def test_a_device_that_is_not_there(device: str, gpus: int, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        check_device(device, "student.device", Gpus(gpus), threads=5)
    assert caught.value.where == "student.device"
    assert "nvidia-smi" in caught.value.fix
