"""Whether a run may continue from a checkpoint: only with the same settings, prompts and
teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.errors import ConfigurationError, ContractMismatchError
from teacher_proto.program.settings_keys import flatten
from teacher_proto.types import TeacherIdentity

from student_trainer.data.prompts import DIGEST_RULE
from student_trainer.run.checkpoint import TrainState

# Keys that may change on resume, because they do not change a step's numbers. The train
# file may move: its prompts are compared by content.
FREE_KEYS = (
    "run.name",
    "run.output_dir",
    "data.train",
    "teacher.address",
    "teacher.token",
    "teacher.token_file",
    "teacher.tls",
    "teacher.ca",
    "teacher.cert",
    "teacher.key",
    "teacher.insecure_plaintext",
    "teacher.connect_timeout_seconds",
    "teacher.timeout_seconds",
    "teacher.max_in_flight",
    "teacher.attempts",
    "checkpoint",
    "report",
    "tracking",
    "hub",
)


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values; a missing value is None."""
    old, new = flatten(before), flatten(now)
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def check_resumable(
    state: TrainState,
    config: Mapping[str, Any],
    data_digest: str,
    teacher: TeacherIdentity,
    allowed: Sequence[str] = (),
) -> None:
    """Refuses to resume with anything that changes the numbers of the run.

    The keys of FREE_KEYS may change. So may ``run.steps`` with a constant schedule, and
    the keys in ``allowed``.

    Raises:
        ConfigurationError: the settings or the prompts differ.
        ContractMismatchError: the teacher differs.
    """
    free = [*FREE_KEYS, *allowed]
    if config["optimizer"]["schedule"] == "constant":
        free.append("run.steps")
    changed = {
        key: values
        for key, values in changed_keys(state.config, config).items()
        if not any(key == name or key.startswith(f"{name}.") for name in free)
    }
    if changed:
        shown = ", ".join(f"{k} ({old!r} to {new!r})" for k, (old, new) in changed.items())
        raise ConfigurationError(
            f"the configuration differs from the checkpoint's: {shown}",
            where="checkpoint.resume",
            fix="restore the values, name the keys in checkpoint.allow_changed, or start "
            "another run in another run.output_dir",
        )
    if data_digest != state.data_digest and "data.train" not in allowed:
        if not state.data_digest.startswith(DIGEST_RULE):
            raise ConfigurationError(
                "the checkpoint identifies prompts by an earlier rule, which counted answers that "
                "are left out (data.final_assistant): whether its prompts are these is not known",
                where="data.train",
                fix="start another run in another run.output_dir, or name data.train in "
                "checkpoint.allow_changed",
            )
        raise ConfigurationError(
            "the train prompts differ from the checkpoint's",
            where="data.train",
            fix="restore the file, or name data.train in checkpoint.allow_changed",
        )
    if teacher != state.teacher:
        raise ContractMismatchError(
            f"the teacher's identity is {teacher.digest}, the run was scored by "
            f"{state.teacher.digest} so far",
            where="teacher.name",
            fix="serve the same teacher again, or start another run",
            reason="IDENTITY_CHANGED",
        )


def pending_batches_usable(state: TrainState, config: Mapping[str, Any], data_digest: str) -> bool:
    """Whether pending batches are those a run of these settings would have written.

    False only when ``checkpoint.allow_changed`` permits settings or prompts that change
    them.
    """
    changed = changed_keys(state.config, config)
    written_by = ("run.seed", "rollout.", "student.")
    same = not any(key.startswith(written_by) for key in changed)
    return same and data_digest == state.data_digest
