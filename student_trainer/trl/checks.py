"""What a run of TRL has to be like for our losses, checked before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teacher_proto.errors import ConfigurationError

from student_trainer.losses.parts.loss import Loss
from student_trainer.settings.teacher import NamedTeacherSettings
from student_trainer.trl.links import loss_of


def check_loss(loss: Loss, args: Any, teachers: Mapping[str, NamedTeacherSettings]) -> None:
    """Refuses a loss that TRL's rollouts do not fit, or a K that the loss cannot have.

    Args:
        args: TRL's configuration.

    Raises:
        ConfigurationError: names the setting.
    """
    if args.max_completion_length is None:
        raise ConfigurationError(
            "it is not set: responses could be longer than the teacher reads",
            where="max_completion_length",
            fix="set it to the tokens that a response may have",
        )
    if loss.masked_chunks:
        raise ConfigurationError(
            "TRL's rollouts do not say what a chunk was drawn with",
            where="loss.masked_chunks",
            fix="set it to false, or train with student-trainer",
        )
    if len(teachers) > 1 and loss.balance == "teachers":
        raise ConfigurationError(
            "TRL divides a step's loss once, by its tokens, and not by each teacher's",
            where="loss.balance",
            fix='set it to "rows", and each teacher\'s weight to what it is to count',
        )
    for name, one in teachers.items():
        if one.top_k is not None:
            loss_of(loss.model_dump() | {"top_k": one.top_k}, f"teachers[{name!r}]")
    if loss.rollout_temperature and loss.temperature != args.temperature:
        raise ConfigurationError(
            f"{loss.kind} compares the student with itself as it drew its tokens: "
            f"loss.temperature ({loss.temperature}) must equal args.temperature "
            f"({args.temperature})",
            where="loss.temperature",
            fix="set both to one value",
        )
    others = getattr(args, "generation_kwargs", None)
    if loss.rollout_temperature and (args.repetition_penalty != 1 or others):
        raise ConfigurationError(
            f"{loss.kind} compares the student with itself as it drew its tokens, and with "
            f"repetition_penalty {args.repetition_penalty} and generation_kwargs {others} it draws "
            "from another distribution than its own",
            where="generation_kwargs" if others else "repetition_penalty",
            fix="leave them out, or take a loss on a support",
        )
    nucleus = args.top_p < 1 or args.top_k > 0 or args.min_p
    if loss.at_sampled_token and loss.nucleus_weights and nucleus:
        raise ConfigurationError(
            f"{loss.kind} weighs tokens by the nucleus that they were drawn from, which TRL does "
            f"not tell (top_p {args.top_p}, top_k {args.top_k}, min_p {args.min_p})",
            where="loss.nucleus_weights",
            fix="draw from the whole vocabulary (top_p = 1, top_k = 0, no min_p), or set it to "
            "false and learn what docs/losses.md says of that",
        )


def check_parallel(trainer: Any) -> None:
    """Refuses a model that is cut over processes: the losses read rows of the whole head.

    Raises:
        ConfigurationError: FSDP, or DeepSpeed's ZeRO 3.
    """
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    cut = trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)
    if cut:
        raise ConfigurationError(
            "FSDP and ZeRO 3 cut the output projection over processes, and the losses read rows "
            "of the whole of it",
            where="accelerate",
            fix="use data parallelism (accelerate launch --multi_gpu), where each process has the "
            "model",
        )
