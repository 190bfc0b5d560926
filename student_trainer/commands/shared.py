"""What several commands need: settings, a new output folder, a probe, quiet libraries."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_proto.errors import ConfigurationError

from student_trainer.distributed.environment import spoken_rank

if TYPE_CHECKING:
    from teacher_proto.program.settings_show import Resolved
    from torch import Tensor

    from student_trainer.settings.train import TrainConfig

PROBE_TOKENS = 16


def resolve(arguments: argparse.Namespace) -> Resolved[TrainConfig]:
    """The resolved settings of ``train`` and ``doctor``. Raises ConfigurationError."""
    from student_trainer.settings.resolve import resolve_config

    return resolve_config(arguments.configs, arguments.overrides)


def positive(text: str) -> int:
    """A count on the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def natural(text: str) -> int:
    """A seed, or a count that may be none, on the command line."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)


def check_output(output: Path) -> None:
    """Raises ConfigurationError unless ``--output`` is a new or an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(
            "the output exists and is not an empty folder",
            where=str(output),
            fix="give --output a new folder, or delete this one",
        )


def probe_ids(network: Any) -> Tensor:
    """int64 [1, PROBE_TOKENS]: a fixed sequence of ids. Two networks are compared by their
    logits on it."""
    import torch

    size = int(network.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(size, (1, PROBE_TOKENS), generator=generator).to(network.device)


def quiet_libraries() -> None:
    """Sends our own log to standard error and silences the libraries. Ranks after the first log
    warnings and errors alone."""
    import logging
    import warnings

    rank = spoken_rank()

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format=f"%(asctime)s %(levelname)s {rank}%(message)s",
    )
    logging.getLogger("student_trainer").setLevel(logging.WARNING if rank else logging.INFO)
    # peft and transformers warn about each other's renamed methods.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.|peft\.")
    import transformers

    transformers.utils.logging.disable_progress_bar()
