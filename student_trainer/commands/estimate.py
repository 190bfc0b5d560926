"""What a run will take of memory and time: measured on a small piece, and estimated from it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from teacher_proto.errors import LsmError
from torch import Tensor

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.generate import generate
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.start import Start
from student_trainer.student.model import Student, hidden_states, set_training
from student_trainer.update.metrics import UpdateTotals
from student_trainer.update.student_support import with_student_support
from student_trainer.update.updater import NothingUsableError, Updater

MIB = 1 << 20
MEMORY_FILE = Path("/proc/meminfo")
MEASURED_TOKENS = 32
MEASURED_RESPONSES = 4
# Float32 arrays as large as a block of logits that a loss over the vocabulary holds at once.
LOGITS_COPIES = 4


@dataclass(frozen=True)
class Memory:
    """Bytes on the student's device, estimated for the largest micro-batch and the longest
    responses.

    Attributes:
        weights: parameters and buffers.
        optimizer: gradients, moments and, for bfloat16, masters; gradients twice where each
            teacher has a mean of its own.
        activations: what autograd keeps of a micro-batch.
        logits: of a block of rows over the vocabulary.
        cache: keys and values while responses are written.
    """

    weights: int
    optimizer: int
    activations: int
    logits: int
    cache: int

    @property
    def update(self) -> int:
        return self.weights + self.optimizer + self.activations + self.logits

    @property
    def rollout(self) -> int:
        return self.weights + self.optimizer + self.cache

    @property
    def peak(self) -> int:
        return max(self.update, self.rollout)


def estimated_memory(config: TrainConfig, student: Student) -> Memory:
    """Weights and optimizer are counted. Activations and cache are measured on
    ``MEASURED_TOKENS`` and twice as many tokens, and continued to the settings' sizes."""
    parameters = list(student.module.parameters())
    trained = [p for p in parameters if p.requires_grad]
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    sequences = config.optimizer.micro_batch_tokens / longest
    aside = 4 if config.balances_teachers else 0
    whole = [*parameters, *student.module.buffers()]
    return Memory(
        weights=sum(tensor.numel() * tensor.element_size() for tensor in whole),
        optimizer=sum(p.numel() * (aside + (12 if p.element_size() == 4 else 16)) for p in trained),
        activations=int(sequences * continued(student, activation_bytes, longest)),
        logits=config.loss.chunk_rows * student.vocabulary_size * 4 * LOGITS_COPIES,
        cache=int(config.rollout.batch_size * continued(student, cache_bytes, longest)),
    )


def continued(student: Student, measure: Callable[[Student, int], int], tokens: int) -> float:
    """Bytes of a sequence of ``tokens``, from those of two short ones: a n + b n²."""
    n = min(MEASURED_TOKENS, student.max_length // 2)
    once, twice = measure(student, n), measure(student, 2 * n)
    square = max((twice - 2 * once) / (2 * n * n), 0.0)
    linear = (once - square * n * n) / n
    return linear * tokens + square * tokens * tokens


def activation_bytes(student: Student, tokens: int) -> int:
    """Bytes that autograd keeps of one sequence, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in student.module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Held until all are counted, so that no two have one address.
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    set_training(student)
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = hidden_states(student, [_some_ids(student, tokens)])
    finally:
        student.module.eval()
    count = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)
    return count + states.numel() * states.element_size()


@torch.no_grad()
def cache_bytes(student: Student, tokens: int) -> int:
    """Bytes of the keys and values of one sequence."""
    ids = torch.from_numpy(_some_ids(student, tokens).astype(np.int64))[None].to(student.device)
    model: Any = student.causal_model
    cache = model(input_ids=ids, use_cache=True).past_key_values
    tensors = _tensors(cache)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _tensors(value: Any, depth: int = 4) -> dict[int, Tensor]:
    """The tensors that a cache of transformers holds, whatever its kind."""
    if isinstance(value, Tensor):
        return {id(value): value}
    if depth == 0 or value is None or isinstance(value, str | int | float | type):
        return {}
    parts = value if isinstance(value, list | tuple) else getattr(value, "__dict__", {}).values()
    return {key: tensor for part in parts for key, tensor in _tensors(part, depth - 1).items()}


def _some_ids(student: Student, count: int) -> Any:
    """int32 [count]: ids that are spread over those that the student can write."""
    step = max(student.drawn_below // count, 1)
    return (np.arange(count) * step % student.drawn_below).astype(np.int32)


def available_bytes(student: Student, weights: int) -> int:
    """Memory of the student's device that is free, or that the student itself holds.

    Args:
        weights: bytes of the student, which is loaded.
    """
    if student.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(student.device)
        return int(free + torch.cuda.memory_reserved(student.device))
    lines = MEMORY_FILE.read_text().splitlines() if MEMORY_FILE.exists() else []
    known = dict(line.split(":", 1) for line in lines if ":" in line)
    if "MemAvailable" in known:
        return int(known["MemAvailable"].split()[0]) * 1024 + weights
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + weights


def memory(start: Start) -> str:
    """Estimates the memory of the student's device; warns when it will hardly do."""
    found = estimated_memory(start.config, start.student)
    available = available_bytes(start.student, found.weights)
    if found.peak > available:
        start.warn(
            f"{available // MIB} MiB are available: lower optimizer.micro_batch_tokens or "
            "rollout.batch_size, set student.gradient_checkpointing = true, or train adapters "
            "(student.lora)"
        )
    parts = (
        f"weights {found.weights // MIB}, gradients and optimizer {found.optimizer // MIB} "
        f"(both counted), activations of a micro-batch {found.activations // MIB}, keys and values "
        f"of a batch of rollouts {found.cache // MIB} (both continued from {MEASURED_TOKENS} and "
        f"{2 * MEASURED_TOKENS} tokens), logits {found.logits // MIB} (estimated)"
    )
    return (
        f"about {found.peak // MIB} MiB of {start.student.device}, more with what torch keeps for "
        f"itself; in MiB: {parts}"
    )


@dataclass(frozen=True)
class Measured:
    """A few short responses: their number and tokens, those that the student reads to update on
    them, and the seconds that each part took."""

    responses: int
    steps: int
    read: int
    rollout: float
    teacher: float
    update: float


def measured(start: Start) -> Measured:
    """Writes a few short responses, has them scored and computes their gradient; changes nothing.

    Raises:
        LsmError: as the parts of a step.
    """
    config, student, teachers = start.config, start.student, start.teachers
    count = min(MEASURED_RESPONSES, config.rollout.batch_size)
    new = min(MEASURED_TOKENS, config.rollout.max_new_tokens)
    sizes = {"group_size": count, "max_new_tokens": new, "batch_size": count}
    prompt: PromptItem = start.prompts.first(config.run.seed)
    settings = config.rollout.model_copy(update=sizes)
    loss = config.loss
    clock = [time.monotonic()]
    rollouts: list[Rollout] = generate(student, [prompt], settings, seed=config.run.seed, step=0)
    rollouts = with_student_support(
        student,
        rollouts,
        loss.student_top_k,
        limit=teachers.of(prompt).id_limit,
        micro_batch_tokens=config.optimizer.micro_batch_tokens,
        chunk_rows=loss.chunk_rows,
    )
    clock.append(time.monotonic())
    scores = teachers.submit_rollouts(rollouts).result()
    clock.append(time.monotonic())
    updater = Updater(student, config, teachers.realigned)
    totals = UpdateTotals.of_teachers(teachers)
    try:
        updater.gradients(rollouts, scores.__getitem__, totals, step=1)
    except NothingUsableError as error:
        start.warn(f"none of the few tokens that were scored gives a loss: {error.what}")
    clock.append(time.monotonic())
    seconds = [later - earlier for earlier, later in pairwise(clock)]
    read = sum(len(prompt.token_ids) + len(r.token_ids) for r in rollouts)
    return Measured(count, max(len(r.token_ids) for r in rollouts), read, *seconds)


def duration(start: Start) -> str:
    """Measures a few short responses, and estimates from them how long a step can be.

    Raises:
        LsmError: a part of a step fails, or the device has too little memory for it.
    """
    try:
        found = measured(start)
    except torch.OutOfMemoryError as error:
        raise LsmError(
            f"the device has too little memory for {MEASURED_RESPONSES} short responses: {error}",
            where="student.device",
            fix="use a smaller student, student.lora, or a device with more memory",
        ) from error
    rollout, teacher, update = longest_step(start.config, found)
    step = rollout + update
    return (
        f"measured: {found.responses} responses of {found.steps} tokens were written in "
        f"{found.rollout:.2f} s, scored in {found.teacher:.2f} s, and their gradient took "
        f"{found.update:.2f} s. Estimated, were every response as long as it may be: a step writes "
        f"for {_time(rollout)} and updates for {_time(update)}, beside {_time(teacher)} of "
        f"scoring; {start.config.run.steps} steps {_time(step * start.config.run.steps)}. Shorter "
        "responses take less, and larger batches than were measured less for each"
    )


def longest_step(config: TrainConfig, found: Measured) -> tuple[float, float, float]:
    """Seconds of writing, scoring and updating in a step whose responses all have
    ``max_new_tokens``, in proportion to what was measured: writing to the tokens of the
    longest response of each batch, the others to the tokens that are read, which are those of
    the prompts and of what is scored."""
    rollout = config.rollout
    responses = rollout.prompts_per_step * rollout.group_size
    batches = -(-responses // rollout.batch_size)
    prompt = found.read / found.responses - found.steps
    tokens = responses * (prompt + config.scoring.scored(rollout.max_new_tokens))
    return (
        batches * rollout.max_new_tokens * found.rollout / found.steps,
        tokens * found.teacher / found.read,
        tokens * found.update / found.read,
    )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
