"""Which of vLLM's engine arguments a program sets itself, and which it passes through.

The teacher's engine and the trainer's rollouts have their own tables of names; how a name is
looked up, and what both always set, stands here. Nothing here imports vLLM.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from teacher_proto.errors import ConfigurationError

# Tokens of one block of keys and values on a CPU: the fewest that vLLM allows there. Only whole
# blocks of a prompt are shared, and with vLLM's own 128 every sequence would read up to 127
# tokens of its prompt again.
CPU_BLOCK_SIZE = 32


@dataclass(frozen=True)
class Passed:
    """The arguments of vLLM that a program's settings may name.

    Attributes:
        where: the section of the settings that names them.
        program: what sets the others, as an error calls it.
        ours: arguments that the program sets itself, and what to use instead of each.
        refused: arguments that would change what the program promises, and why.
    """

    where: str
    program: str
    ours: Mapping[str, str]
    refused: Mapping[str, str]

    def check(self, name: str, known: Collection[str] | None = None) -> None:
        """Checks that an argument may be passed through to vLLM.

        Args:
            known: the names that this vLLM knows; None where it is not asked.

        Raises:
            ConfigurationError: it is set by the program, refused, or unknown.
        """
        where = f"{self.where}.{name}"
        if name in self.ours:
            raise ConfigurationError(
                f"the {self.program} sets this argument of vLLM itself",
                where=where,
                fix=f"use {self.ours[name]}",
            )
        if name in self.refused:
            raise ConfigurationError(
                f"this argument of vLLM is not supported: {self.refused[name]}",
                where=where,
                fix="leave it out",
            )
        if known is not None and name not in known:
            free = sorted({*known} - {*self.ours, *self.refused})
            near = difflib.get_close_matches(name, free, n=1)
            fix = f"did you mean {near[0]}?" if near else "see the engine arguments of vLLM's docs"
            raise ConfigurationError("vLLM has no such engine argument", where=where, fix=fix)


def always(model: str, dtype: str, length: int | None) -> dict[str, Any]:
    """What both programs set: token ids alone, and nothing that a checkpoint's folder runs or
    prefers.

    Args:
        model: its folder.
        length: tokens of the longest sequence; None for the model's own.
    """
    return {
        "model": model,
        "tokenizer": model,
        "skip_tokenizer_init": True,
        "runner": "generate",
        "dtype": dtype,
        "max_model_len": length,
        "trust_remote_code": False,
        "generation_config": "vllm",
        "disable_log_stats": True,
    }


def reason_of(message: str) -> str:
    """vLLM's own reason in the message of one of its errors, freed of what pydantic and Python
    put around it."""
    _, _, value = message.rpartition("Value error, ")
    return (value or message).split(" [type=")[0].strip()
