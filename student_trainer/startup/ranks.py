"""Steps that the ranks of a run make together: whether they are set to the same run, see the same
files, and read the same prompts, student and teachers. One process makes none of them.

Unlike other steps they meet the other ranks themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.files import file_sha256
from teacher_proto.program.settings_keys import flatten

from student_trainer.data import run_clock
from student_trainer.distributed.world import World, on_every_rank
from student_trainer.rollout.plan import check_share
from student_trainer.rollout.slots.supported import why_padded
from student_trainer.run.checkpoint import MANIFEST, load_state
from student_trainer.settings.dotted import sources
from student_trainer.startup.start import Start
from student_trainer.student.lora import base_weights_digest
from student_trainer.student.model import resolve_device
from student_trainer.student.sharding import shard

PACKAGES = ("lsm-distill", "torch", "transformers", "peft", "safetensors", "tokenizers", "numpy")
MARKER = ".ranks"
SHOWN = 3


def settings(start: Start) -> str:
    """Whether every rank has the same settings, versions and code, and the step can be shared.

    Raises:
        ConfigurationError: they differ, the ranks do not divide the prompts of an update, or
            the settings are those of one process.
    """
    world, config = start.world, start.config
    compare(start, "settings", flatten(config.model_dump(mode="json")), "its configuration")
    compare(start, "versions", versions(), "what is installed")
    compare(start, "files of your own classes", {s.module: s.sha256 for s in sources(config)}, "")
    prompts, updates = config.rollout.prompts_per_step, config.optimizer.updates_per_batch
    world.each(lambda: check_share(prompts, updates, world.size))
    world.each(lambda: check_device(config.student.device, world))
    place = config.rollout.vllm.place
    if config.rollout.engine == "vllm" and place != "colocated":
        raise on_every_rank(
            ConfigurationError(
                f"with {world.size} ranks each has a vLLM beside itself, and not one that is "
                f"{'a server' if place == 'server' else 'on GPUs of its own'}",
                where="rollout.vllm.place",
                fix='set it to "colocated", or start one process',
            )
        )
    return f"{world.size} ranks with the same settings and versions"


def check_device(device: str, world: World) -> None:
    """Raises ConfigurationError unless a rank has a device of its own."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigurationError(
            f"{world.size} ranks cannot all use {device}",
            where="student.device",
            fix='set it to "auto": a rank takes the GPU that has its number on its machine',
        )
    if resolve_device(device).type == "cuda" and world.local_rank >= torch.cuda.device_count():
        raise ConfigurationError(
            f"rank {world.rank} is number {world.local_rank} of its machine, which has "
            f"{torch.cuda.device_count()} GPUs, counted from 0",
            where="student.device",
            fix="start as many ranks on a machine as it has GPUs (--nproc-per-node)",
        )


def files(start: Start) -> str:
    """Whether every rank sees the run's directory, and the checkpoint that rank 0 has found and
    checked there; they go on with that one.

    Raises:
        ConfigurationError: one does not see it, or sees another.
    """
    world = start.world
    chosen = None if start.checkpoint is None else str(start.checkpoint.absolute())
    chosen, start.now = world.from_first([chosen, run_clock(start.config.data, kept=start.now)])
    folder = start.run.path if chosen is None else Path(chosen)
    marker = folder / MANIFEST if chosen else folder / f"{MARKER}-{world.from_first(os.getpid())}"
    if chosen is None:
        world.on_first(lambda: marker.write_text(os.urandom(16).hex()))
    try:
        told = world.from_first(world.on_first(lambda: file_sha256(marker)))
        world.each(lambda: _check_seen(start, marker, told))
    finally:
        if chosen is None and world.writes:
            marker.unlink(missing_ok=True)
    if chosen is not None:
        start.checkpoint = Path(chosen)
        start.resumed = world.each(lambda: load_state(Path(chosen)))
    return f"{world.size} ranks see {folder}"


def inputs(start: Start) -> str:
    """Whether every rank has read the same prompts, student and teachers.

    Raises:
        ConfigurationError: they differ.
    """
    student, prompts = start.student, start.prompts
    compare(start, "train prompts", {"digest": prompts.digest}, "data.train")
    held_out = _digest([prompt.prompt_id for prompt in prompts.held_out])
    compare(start, "held-out prompts", {"digest": held_out}, "data.held_out")
    compare(start, "prompts left out", {"digest": _digest(sorted(prompts.left_out))}, "data.train")
    found: dict[str, Any] = {
        "tokenizer": student.tokenizer_hash,
        "terminators": list(student.terminators),
        "vocabulary": student.vocabulary_size,
        "packed": student.packs,
        "written continuously": not why_padded(student),
    }
    compare(start, "student", found, "student.model")
    # Ranks of one machine read the same files.
    first = start.world.local_rank == 0
    weights = start.world.each(lambda: base_weights_digest(student.folder) if first else "")
    known = next(one for one in start.world.gather(weights) if one)
    compare(start, "student's weights", {"digest": weights or known}, "student.model")
    identities = {
        f"{name}.{part}": value
        for name, info in start.infos.items()
        for part, value in asdict(info.identity).items()
    }
    compare(start, "teachers", identities, "teacher.name")
    return f"{start.world.size} ranks have the same prompts, student and teachers"


def shards(start: Start) -> str:
    """Spreads the student over the ranks.

    Raises:
        ConfigurationError: as ``shard``.
    """
    # What is tried of the whole model is tried before.
    start.world.each(lambda: why_padded(start.student))
    start.student = shard(start.student, start.config.distributed, start.world)
    return f"its parameters are spread over {start.world.size} ranks"


def compare(start: Start, what: str, mine: Mapping[str, Any], where: str) -> None:
    """Checks that named JSON values are the same on every rank.

    Raises:
        ConfigurationError: they differ, on every rank; names the first that do.
    """
    every = start.world.gather(dict(mine))
    for rank, its in enumerate(every):
        keys = sorted(
            key for key in its.keys() | every[0].keys() if its.get(key) != every[0].get(key)
        )
        if keys:
            shown = ", ".join(
                f"{key} ({every[0].get(key)!r} and {its.get(key)!r})" for key in keys[:SHOWN]
            )
            raise on_every_rank(
                ConfigurationError(
                    f"the {what} of rank 0 and of rank {rank} differ: {shown}"
                    + (", ..." if len(keys) > SHOWN else ""),
                    where=where,
                    fix="start every rank with the same command, environment, versions and files",
                )
            )


def versions() -> dict[str, str]:
    """What a rank's numbers depend on besides its settings."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    found["byte order"] = sys.byteorder
    return found


def _check_seen(start: Start, path: Path, told: str) -> None:
    """Raises ConfigurationError unless a file is here as rank 0 sees it."""
    try:
        same = file_sha256(path) == told
    except OSError:
        same = False
    if not same:
        raise ConfigurationError(
            f"rank {start.world.rank} does not see {path} as rank 0 does",
            where="run.output_dir",
            fix="put it on a file system that the machines of all ranks share",
        )


def _digest(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
