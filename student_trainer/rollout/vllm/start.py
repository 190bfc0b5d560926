"""Starts vLLM, or finds it, for a student."""

from __future__ import annotations

import os
from pathlib import Path

from teacher_proto.errors import ConfigurationError

from student_trainer.distributed.environment import ranks_here
from student_trainer.rollout.vllm.core import Core
from student_trainer.rollout.vllm.hand_over import transfer_of
from student_trainer.rollout.vllm.options import Sizes, check_installed
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.memory import update_bytes, weight_bytes
from student_trainer.student.model import Student

IN_MEMORY = Path("/dev/shm")


def start_core(student: Student, settings: RolloutSettings, longest: int) -> Core:
    """vLLM where ``rollout.vllm.place`` says.

    Args:
        longest: tokens of the longest prompt with its response.

    Raises:
        ConfigurationError: it is not there, or cannot be started for this student.
    """
    own = settings.vllm
    if own.place == "server":
        from student_trainer.rollout.vllm.server import ServerCore

        assert own.address is not None, "the settings ask for it"
        return ServerCore(own.address, settings.batch_size, own.answer_seconds)
    check_installed()
    from student_trainer.rollout.vllm.local import ON_CPU, LocalCore

    if own.sleep and ON_CPU:
        raise ConfigurationError(
            "vLLM sleeps on GPUs alone, and this one is built for a CPU",
            where="rollout.vllm.sleep",
            fix="leave it out",
        )
    if own.place == "colocated" and (student.device.type == "cpu") != ON_CPU:
        raise ConfigurationError(
            f"the student is on {student.device}, and this vLLM is built for "
            f"{'a CPU' if ON_CPU else 'GPUs'}",
            where="rollout.vllm.place",
            fix="install the other build, or set student.device",
        )
    return LocalCore(
        str(student.folder),
        str(student.dtype).removeprefix("torch."),
        sizes_of(student, settings, longest),
        own.options,
        devices=own.devices if own.place == "own" else _same_device(student),
        sleep=own.sleep,
        transfer=transfer_of(own, student),
        answer_seconds=own.answer_seconds,
    )


def sizes_of(student: Student, settings: RolloutSettings, longest: int) -> Sizes:
    """What vLLM has to make room for.

    Args:
        longest: tokens of the longest prompt with its response.
    """
    length = min(longest, student.max_length)
    config = student.causal_model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_a_token = 2 * config.num_hidden_layers * heads * size * student.dtype.itemsize
    weights = weight_bytes(student)
    # A sequence's last block is there as a whole.
    blocks = -(-length // 128) * 128
    return Sizes(
        settings.batch_size,
        length,
        weights,
        settings.batch_size * blocks * of_a_token,
        file_bytes=weights * ranks_here() if _in_memory(settings.vllm.folder) else 0,
        update_bytes=update_bytes(student),
    )


def _in_memory(folder: Path) -> bool:
    """Whether the files of a folder are kept in memory."""
    there = IN_MEMORY.is_dir() and folder.is_dir()
    return there and folder.stat().st_dev == IN_MEMORY.stat().st_dev


def _same_device(student: Student) -> str | None:
    """The student's own GPU, as vLLM's processes are to see it; None where they see it anyway."""
    index = student.device.index
    if student.device.type != "cuda" or index is None:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index] if visible else str(index)
