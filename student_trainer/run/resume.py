"""Whether a run may continue from a checkpoint: only with the same settings, prompts and
teacher."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from teacher_proto.errors import ConfigurationError, ContractMismatchError
from teacher_proto.program.settings_keys import flatten
from teacher_proto.tokenizer_hash import hash_version
from teacher_proto.types import TeacherIdentity

from student_trainer.data.digest import difference, same_prompts
from student_trainer.run.checkpoint import TrainState
from student_trainer.settings.dotted import Source
from student_trainer.settings.teacher import ONLY_TEACHER
from student_trainer.settings.train import TrainConfig

# Where vLLM runs and how it gets the weights, which changes no distribution.
VLLM = "rollout.vllm"
# Keys that may change on resume, because they do not change a step's numbers. The train
# file may move: its prompts are compared by content. What is left out of them may change,
# and how many rows may be not finite, so that no row ends a run for good.
FREE_KEYS = (
    "run.name",
    "run.output_dir",
    "data.train",
    "data.over_long",
    "data.refused",
    "loss.max_non_finite_share",
    VLLM,
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
    "evaluation.every",
    "evaluation.patience",
    "verification",
    "checkpoint",
    "distributed",
    "report",
    "tracking",
    "hub",
)


# What ``checkpoint.allow_changed`` calls the files of a user's own classes.
MODULES = "modules"

# Settings that a checkpoint of before there were any does not speak of. Whether they change
# anything is told later: of prompts by their digest and by how the teacher reads them, of coarse
# rows once the tokenizers are compared.
COARSE = "loss.coarse"
TOLD_LATER = ("data.now", "data.add_bos", "teacher.prompt", COARSE)

# What a run did before there was a setting for it, where that is not the setting's default.
# A checkpoint that lacks such a key was written by a run that did this.
NUCLEI = "loss.nucleus_weights"
PACKING, ENGINE = "student.packing", "rollout.engine"
BEFORE_THE_SETTING: Mapping[str, Any] = {NUCLEI: False, PACKING: "off"}


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values; a missing value is None."""
    old, new = flatten(before), flatten(now)
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def with_later_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of a checkpoint with the settings that there were not yet when it was
    written: as ``BEFORE_THE_SETTING`` has them, otherwise at their defaults. Where what a run
    did depends on more than its settings, a step of the start looks at that.

    A configuration that is none of these settings any more is returned as it is.
    """
    known = flatten(config)
    filled = copy.deepcopy(dict(config))
    for key, value in BEFORE_THE_SETTING.items():
        *sections, name = key.split(".")
        inner: Any = filled
        for section in sections:
            inner = inner.get(section) if isinstance(inner, dict) else None
        if key not in known and isinstance(inner, dict):
            inner[name] = value
    try:
        return TrainConfig.model_validate(filled).model_dump(mode="json")
    except ValidationError:
        return config


def check_resumable(
    state: TrainState,
    config: Mapping[str, Any],
    data_digest: str,
    teachers: Mapping[str, TeacherIdentity],
    allowed: Sequence[str] = (),
) -> None:
    """Refuses to resume with anything that changes the numbers of the run.

    Raises:
        ConfigurationError: as ``check_settings`` and ``check_prompts``.
        ContractMismatchError: as ``check_teachers``.
    """
    check_settings(state, config, allowed)
    check_prompts(state, data_digest, allowed)
    check_teachers(state, teachers)


def check_settings(
    state: TrainState, config: Mapping[str, Any], allowed: Sequence[str] = ()
) -> None:
    """Refuses settings that change the numbers of the run.

    The keys of FREE_KEYS may change. So may ``run.steps`` where learning rate and weight of
    rewards are constant, and the keys in ``allowed``.

    Raises:
        ConfigurationError: other keys differ, or fewer steps are asked for than were made.
    """
    free = [*FREE_KEYS, *allowed]
    known = {_of_one(key) for key in flatten(state.config)}
    free += [key for key in TOLD_LATER if key not in known]
    if state.now and flatten(config).get("data.now") == state.now:
        free.append("data.now")
    # A course over the run's steps is another one where there are more of them.
    courses = (config["optimizer"], config.get("reward", {}))
    if all(one.get("schedule", "constant") == "constant" for one in courses):
        free.append("run.steps")
    if not _learns_from_nuclei(config):
        free.append(NUCLEI)
    changed = {
        key: values
        for key, values in changed_keys(with_later_settings(state.config), config).items()
        if not any(
            of == name or of.startswith(f"{name}.") for of in (key, _of_one(key)) for name in free
        )
    }
    if changed:
        shown = ", ".join(f"{k} ({old!r} to {new!r})" for k, (old, new) in changed.items())
        raise ConfigurationError(
            f"the configuration differs from the checkpoint's: {shown}",
            where="checkpoint.resume",
            fix="restore the values, name the keys in checkpoint.allow_changed, or start "
            "another run in another run.output_dir",
        )
    if state.step > config["run"]["steps"]:
        raise ConfigurationError(
            f"the run has made {state.step} steps, more than {config['run']['steps']}",
            where="run.steps",
            fix=f"raise it to {state.step} or more, name an earlier checkpoint in "
            "checkpoint.resume, or start another run in another run.output_dir",
        )


def check_sources(state: TrainState, found: Sequence[Source], allowed: Sequence[str] = ()) -> None:
    """Refuses classes of the user's own whose files are not those that the run was made with.

    Args:
        found: of the settings, by ``settings.dotted.sources``.
        allowed: keys that may change; ``MODULES`` allows every file.

    Raises:
        ConfigurationError: a file has changed, or a module is no longer imported; all are named.
    """
    if MODULES in allowed:
        return
    now = {source.module: source for source in found}
    changed = [
        f"{now[name].path} has changed" if name in now else f"{name} is no longer imported"
        for name, before in sorted(state.sources.items())
        if name not in now or now[name].sha256 != before
    ]
    if changed:
        raise ConfigurationError(
            f"the run was made with other code of your own: {', '.join(changed)}",
            where="checkpoint.resume",
            fix="restore the files (those that stood beside the configuration are kept in the "
            f"run's directory), name {MODULES} in checkpoint.allow_changed, or start another run "
            "in another run.output_dir",
        )


def check_found(
    state: TrainState, packs: bool | None, continuous: bool | None, allowed: Sequence[str] = ()
) -> None:
    """Refuses a student that reads or writes otherwise than so far with the same settings, as
    other versions or another machine can bring about. What the checkpoint does not say is not
    compared.

    Args:
        packs, continuous: as ``TrainState`` has them, now.

    Raises:
        ConfigurationError: one of them differs.
    """
    compared = (
        (PACKING, state.packs, packs, "the student reads its sequences", "packed", "padded"),
        (ENGINE, state.continuous, continuous, "responses are written", "continuously", "padded"),
    )
    for key, before, now, what, yes, no in compared:
        if None in (before, now) or before == now or key in allowed:
            continue
        raise ConfigurationError(
            f"{what} {yes if now else no}, and so far {yes if before else no}, with the same "
            "settings: the model passes a check of the start otherwise than before (the log says "
            "why), and values differ in rounding",
            where="checkpoint.resume",
            fix="go on with the versions and the device of before (machine.json), "
            f"or name {key} in checkpoint.allow_changed",
        )


def _of_one(key: str) -> str:
    """A key of one of several teachers as that of the only one: what may change of one may
    change of each."""
    return re.sub(r"^teachers\.[^.]+\.", "teacher.", key)


def check_prompts(state: TrainState, data_digest: str, allowed: Sequence[str] = ()) -> None:
    """Raises ConfigurationError when the train prompts are not the checkpoint's, unless
    ``data.train`` is in ``allowed``."""
    changed = difference(state.data_digest, data_digest)
    if changed is not None and "data.train" not in allowed:
        what, fix = changed
        raise ConfigurationError(
            what,
            where="data.train",
            fix=f"{fix}, or name data.train in checkpoint.allow_changed",
        )


# The parts of a teacher's identity, for people.
IDENTITY = {
    "weights_digest": "weights",
    "dtype": "data type",
    "quantization": "quantization",
    "adapter_digest": "adapter",
    "tokenizer_hash": "tokenizer",
    "chat_template_digest": "chat template",
}


def check_teachers(state: TrainState, teachers: Mapping[str, TeacherIdentity]) -> list[str]:
    """Refuses other teachers than those that scored so far.

    A checkpoint of an earlier version does not say everything that an identity holds now:
    what it says has to be the same.

    Args:
        teachers: those of now, by the same names: a name that is there or gone is another
            setting.

    Returns:
        What could not be compared, a sentence for each teacher of which something could not.

    Raises:
        ContractMismatchError: a part of one of them differs; it is named.
    """
    several = len(teachers) > 1 or set(teachers) != {ONLY_TEACHER}
    notes = []
    for name, before in state.teachers.items():
        now = teachers.get(name)
        if now is None or before == now:
            continue
        unknown = _compare(before, now, dated=bool(state.now), name=name if several else "")
        notes += [unknown] if unknown else []
    return notes


def _compare(before: TeacherIdentity, teacher: TeacherIdentity, *, dated: bool, name: str) -> str:
    """What of two unequal identities could not be compared.

    Args:
        dated: whether the checkpoint is of a version whose identities hold the chat template.
        name: of the teacher, of several; empty for the only one.

    Raises:
        ContractMismatchError: a part differs that both have.
    """
    whose, the = f"teacher {name}'s" if name else "", "the teacher's"
    parts = [part for part in IDENTITY if getattr(before, part) != getattr(teacher, part)]
    incomparable = set()
    if hash_version(before.tokenizer_hash) != hash_version(teacher.tokenizer_hash):
        incomparable.add("tokenizer_hash")
    if not dated:
        incomparable.add("chat_template_digest")
    unknown = [part for part in parts if part in incomparable]
    changed = [IDENTITY[part] for part in parts if part not in incomparable]
    if not changed and unknown:
        return (
            "the checkpoint is of an earlier version, which identified a teacher otherwise: that "
            f"{whose or 'its'} "
            f"{' and '.join(IDENTITY[part] for part in unknown)} are the same could not be "
            "compared, the rest is"
        )
    raise ContractMismatchError(
        f"{whose or the} identity is {teacher.digest}, the run was scored by "
        f"{before.digest} so far: another {', '.join(changed) or 'digest'}",
        where=f"teachers.{name}.name" if name else "teacher.name",
        fix="serve the same teacher again, or start another run",
        reason="IDENTITY_CHANGED",
    )


def pending_batches_usable(state: TrainState, config: Mapping[str, Any], data_digest: str) -> bool:
    """Whether pending batches are those a run of these settings would have written.

    False only when ``checkpoint.allow_changed`` permits settings or prompts that change
    them.
    """
    changed = changed_keys(with_later_settings(state.config), config)
    written_by = ["run.seed", "rollout.", "student.", "data.over_long", "data.refused", "mixing."]
    if _learns_from_nuclei(config):
        # Batches of before they were weighed do not say what their tokens were drawn from.
        written_by.append(NUCLEI)
    same = not any(
        key.startswith(tuple(written_by)) for key in changed if not key.startswith(f"{VLLM}.")
    )
    return same and same_prompts(state.data_digest, data_digest)


def _learns_from_nuclei(config: Mapping[str, Any]) -> bool:
    try:
        return TrainConfig.model_validate(config).learns_from_nuclei
    except ValidationError:
        return True
