"""What each of several ranks will take of memory: the arithmetic of docs/distributed.md."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from student_trainer.commands.estimate import MIB, available_bytes, estimated_memory
from student_trainer.rollout.plan import check_share
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.start import Start
from student_trainer.student.layers import find_layers
from student_trainer.student.model import Student

# Of a trained parameter, in float32: itself, its gradient and AdamW's two moments.
SHARD_BYTES = 4 + 4 + 8
GRADIENT_BYTES = 4
# Layers that are gathered at once with distributed.reshard = "after_pass": the one that computes,
# and the next.
LAYERS_AT_ONCE = 2


@dataclass(frozen=True)
class RankMemory:
    """Bytes on the device of each rank, estimated for the largest micro-batch and the longest
    responses.

    Attributes:
        held: all the time: its part of the parameters, gradients and moments, and whole buffers.
        gathered: whole parameters while responses are written, read or saved.
        updating: parameters that are whole at once while gradients are computed.
        summed: whole gradients between the micro-batches of an update.
        activations, logits, cache: as ``Memory`` has them, of the rank's own micro-batches and
            responses.
    """

    held: int
    gathered: int
    updating: int
    summed: int
    activations: int
    logits: int
    cache: int

    @property
    def update(self) -> int:
        return self.held + self.updating + self.summed + self.activations + self.logits

    @property
    def rollout(self) -> int:
        return self.held + self.gathered + self.cache

    @property
    def peak(self) -> int:
        return max(self.update, self.rollout)


def rank_memory(config: TrainConfig, student: Student, ranks: int) -> RankMemory:
    """The memory of each of ``ranks`` ranks.

    Args:
        student: as one process loads it.

    Raises:
        ConfigurationError: so many ranks cannot share a step.
    """
    groups, updates = config.rollout.prompts_per_step, config.optimizer.updates_per_batch
    check_share(groups, updates, ranks)
    rollout = config.rollout.model_copy(update={"prompts_per_step": groups // ranks})
    share = estimated_memory(config.model_copy(update={"rollout": rollout}), student)
    parameters = list(student.module.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(_bytes(p) for p in parameters if not p.requires_grad)
    aside = GRADIENT_BYTES * trained if config.balances_teachers else 0
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in student.module.buffers())
    gathered = sum(map(_bytes, parameters))
    updating = gathered
    if config.distributed.reshard == "after_pass":
        layers = [sum(map(_bytes, layer.parameters())) for layer in _layers(student)]
        updating = gathered - sum(layers) + LAYERS_AT_ONCE * max(layers)
    return RankMemory(
        held=-(-(SHARD_BYTES * trained + frozen + aside) // ranks) + buffers,
        gathered=gathered,
        updating=min(updating, gathered),
        summed=GRADIENT_BYTES * trained,
        activations=share.activations,
        logits=share.logits,
        cache=share.cache,
    )


def memory_of(start: Start, ranks: int) -> str:
    """Estimates the memory of each of ``ranks`` ranks; warns when it will hardly do."""
    found = rank_memory(start.config, start.student, ranks)
    available = available_bytes(start.student, found.gathered)
    if found.peak > available:
        start.warn(
            f"{available // MIB} MiB are available: start more ranks, set distributed.reshard = "
            '"after_pass", lower optimizer.micro_batch_tokens or rollout.batch_size, set '
            "student.gradient_checkpointing = true, or train adapters (student.lora)"
        )
    return (
        f"about {found.peak // MIB} MiB on each of {ranks} devices, more with what torch keeps for "
        f"itself; in MiB: held all the time {found.held // MIB}, whole parameters "
        f"{found.gathered // MIB} in rollouts and {found.updating // MIB} in an update, whole "
        f"gradients in an update {found.summed // MIB}, activations of a micro-batch "
        f"{found.activations // MIB}, keys and values of a batch of rollouts "
        f"{found.cache // MIB}, logits {found.logits // MIB}"
    )


def _bytes(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()


def _layers(student: Student) -> list[nn.Module]:
    count = int(student.causal_model.config.get_text_config().num_hidden_layers)
    owner, name = find_layers(student.decoder, count)
    return list(getattr(owner, name))
