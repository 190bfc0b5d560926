"""Checkpoints: safetensors and JSON files, written whole or not at all, checked by sha256.

checkpoints/step-000020/
    manifest.json          size and sha256 of every other file
    state.json             step, data position, teacher identity, configuration
    model/                 the model or its adapters, with the tokenizer
    optimizer.safetensors  moments and masters (update/optim.py); with N ranks N files
                           optimizer-0000r-of-0000N.safetensors (optimizer_files.py)
    rng.safetensors        state of torch's generators (rng.py)
    rollouts.safetensors   rollouts of pending batches, if any (pending_batches.py)
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from teacher_proto.errors import ConfigurationError, LsmError
from teacher_proto.program.files import file_sha256
from teacher_proto.types import TeacherIdentity
from torch import Tensor

from student_trainer.distributed.folder import folder_of_ranks
from student_trainer.distributed.world import ALONE, World, agreed, on_every_rank
from student_trainer.ranks import optimizer_files
from student_trainer.run.pending_batches import PendingBatch
from student_trainer.run.retention import UNFINISHED, Goal, delete_old_checkpoints, listing
from student_trainer.settings.teacher import ONLY_TEACHER

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
NOT_WRITTEN = "CHECKPOINT_NOT_WRITTEN"


@dataclass(frozen=True)
class TrainState:
    """Where a run stands between two steps.

    Attributes:
        step: completed steps.
        updates: completed optimiser updates, which set the learning rate.
        position: how many prompts of the endless training order the completed steps used.
        data_digest: digest of the train prompts.
        teachers: identity of each teacher that scored the steps so far, by its name.
        config: the configuration, as JSON values.
        pending_batches: batches that wait for their update.
        score: mean of the metric that ``checkpoint.best`` names, or None.
        now: the run's clock, local date and time in ISO 8601: what chat templates print.
            Empty in a checkpoint of before runs had one.
        terminators: ids that ended the responses; None in a checkpoint of before they were
            kept.
        sources: sha256 of the files of the user's own classes, by the names of their modules.
        packs: whether the student reads packed sequences (``Student.packs``).
        continuous: whether its responses are written by continuous batching; None where another
            engine writes them. Both are None in a checkpoint of before they were kept.
    """

    step: int
    updates: int
    position: int
    data_digest: str
    teachers: Mapping[str, TeacherIdentity]
    config: Mapping[str, Any]
    pending_batches: tuple[PendingBatch, ...] = ()
    score: float | None = None
    now: str = ""
    terminators: tuple[int, ...] | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    packs: bool | None = None
    continuous: bool | None = None


def save(
    directory: Path,
    state: TrainState,
    *,
    save_model: Callable[[Path], None],
    optimizer: Mapping[str, Tensor],
    rng: Mapping[str, Tensor],
    rollouts: Mapping[str, Tensor],
    keep: int,
    goal: Goal = "min",
    world: World = ALONE,
) -> Path:
    """Writes ``directory/step-NNNNNN`` and returns it. The newest ``keep`` checkpoints and
    the best one by ``goal`` are kept. Every rank calls it: each writes its part of the
    optimiser's tensors, and rank 0 the rest, of what it is given.

    Args:
        save_model: called on every rank; rank 0 writes.

    Raises:
        LsmError: it could not be written. Earlier checkpoints are untouched.
    """
    final = directory / f"step-{state.step:06d}"
    try:
        world.on_first(lambda: _remove_unfinished(directory))
        with folder_of_ranks(final, world, prefix=UNFINISHED, replace=True, sync=True) as work:
            world.each(lambda: save_model(work / "model"))
            mine = optimizer_files.write(work, optimizer, world)
            written = dict(world.gather([mine.name, world.each(lambda: _entry(mine))]))

            def write_rest() -> None:
                save_file(dict(rng), work / _RNG)
                if rollouts:
                    save_file(dict(rollouts), work / _ROLLOUTS)
                (work / "state.json").write_text(json.dumps(_to_json(state), indent=1) + "\n")
                _check_seen(work, written)
                files = {str(p.relative_to(work)) for p in work.rglob("*") if p.is_file()}
                known = {
                    name: written.get(name) or _entry(work / name)
                    for name in sorted(files | written.keys())
                }
                manifest = json.dumps({"format": FORMAT, "files": known}, indent=1) + "\n"
                (work / MANIFEST).write_text(manifest)

            world.on_first(write_rest)
        world.on_first(lambda: delete_old_checkpoints(directory, state.step, keep, goal))
    except Exception as error:
        if not _of_writing(error, world):
            raise
        told = isinstance(error, OSError | SafetensorError | LsmError)
        raise on_every_rank(
            LsmError(
                f"cannot write the checkpoint of step {state.step}: "
                f"{error if told else f'{type(error).__name__}: {error}'}",
                where=str(directory),
                fix="free space or change run.output_dir, then start again: the run resumes",
                reason=NOT_WRITTEN,
            )
        ) from error
    return final


def _of_writing(error: Exception, world: World) -> bool:
    """Whether an error is one of writing. With several ranks every error is that they have
    agreed on, so that all of them fail by the same: what one of them cannot write, the others
    have as its error only."""
    return agreed(error) if world.several else isinstance(error, OSError | SafetensorError)


def _check_seen(folder: Path, written: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises LsmError where rank 0 does not see a file as another rank has written it, as on a
    disk that each machine has for itself. A listing of the folder may lack what is there."""
    for name, entry in written.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise LsmError(
                f"rank 0 does not see {name} as another rank has written it",
                where=str(folder),
                fix="set run.output_dir to a folder that every machine shares",
            )


def _remove_unfinished(directory: Path) -> None:
    for rest in directory.glob(f"{UNFINISHED}*"):
        shutil.rmtree(rest)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None when they are as they were written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        entries: Mapping[str, Any] = manifest["files"]
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, not {FORMAT}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST}: {error!r}"
    needed = {_RNG, "state.json", *optimizer_files.files_among(entries)}
    if missing := needed - set(entries):
        return f"{MANIFEST} does not list {sorted(missing)}"
    for name, entry in entries.items():
        try:
            if _entry(checkpoint / name) != entry:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def newest_good(directory: Path) -> Path | None:
    """The newest undamaged checkpoint, or None when there are no checkpoints. Damaged ones
    are skipped with a warning.

    Raises:
        ConfigurationError: there are checkpoints, and all are damaged.
    """
    found = listing(directory)
    for checkpoint in found:
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        log.warning("skipping damaged checkpoint %s: %s", checkpoint, problem)
    if found:
        raise ConfigurationError(
            f"none of its {len(found)} checkpoints is undamaged",
            where=str(directory),
            fix="restore one, or remove the directory to start from the beginning",
        )
    return None


def load_state(checkpoint: Path) -> TrainState:
    """Reads state.json of an undamaged checkpoint. What an earlier version did not keep yet has
    its default.

    Raises:
        ConfigurationError: it has fields that are not known here, or lacks one.
    """
    values = json.loads((checkpoint / "state.json").read_text())
    try:
        teachers = _teachers(values)
        pending = tuple(_pending_batch(entry) for entry in values.pop(_PENDING))
        if values.get("terminators") is not None:
            values["terminators"] = tuple(values["terminators"])
        return TrainState(**values, teachers=teachers, pending_batches=pending)
    except (TypeError, KeyError) as error:
        raise ConfigurationError(
            f"its state.json is not of this version of the trainer: {error}",
            where=str(checkpoint),
            fix="resume with the version that wrote it, or start another run in another "
            "run.output_dir",
        ) from error


@dataclass(frozen=True)
class SavedTensors:
    """The tensors of a checkpoint, except the model's."""

    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]
    rollouts: dict[str, Tensor]


def load_tensors(checkpoint: Path, masters: Mapping[str, Tensor]) -> SavedTensors:
    """Reads the tensors of an undamaged checkpoint, except the model's; ``masters`` as for
    ``optimizer_files.read``. Which files there are is what the manifest says.

    Raises:
        ConfigurationError: this process cannot read one of them.
    """
    try:
        names = json.loads((checkpoint / MANIFEST).read_text())["files"]
        return SavedTensors(
            optimizer=optimizer_files.read(checkpoint, names, masters),
            rng=load_file(checkpoint / _RNG),
            rollouts=load_file(checkpoint / _ROLLOUTS) if _ROLLOUTS in names else {},
        )
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(
            f"a file of it cannot be read here: {error}",
            where=str(checkpoint),
            fix="with several machines set run.output_dir to a folder that all of them share; "
            "otherwise restore the file, or name an earlier checkpoint in checkpoint.resume",
        ) from error


_RNG = "rng.safetensors"
_ROLLOUTS = "rollouts.safetensors"
_PENDING = "in_flight"  # key of the pending batches in state.json


def _to_json(state: TrainState) -> dict[str, Any]:
    """The only teacher is ``teacher``, as before there were several."""
    names = {"pending_batches": _PENDING}
    values = asdict(state)
    if list(state.teachers) == [ONLY_TEACHER]:
        names["teachers"] = "teacher"
        values["teachers"] = values["teachers"][ONLY_TEACHER]
    return {names.get(k, k): v for k, v in values.items()}


def _teachers(values: dict[str, Any]) -> dict[str, TeacherIdentity]:
    """Takes the identities out of the values of a state.json, by the teachers' names."""
    if "teachers" not in values:
        return {ONLY_TEACHER: TeacherIdentity(**values.pop("teacher"))}
    return {name: TeacherIdentity(**one) for name, one in values.pop("teachers").items()}


def _pending_batch(values: Mapping[str, Any]) -> PendingBatch:
    ids = values.get("prompt_ids")
    return PendingBatch(**{**values, "prompt_ids": None if ids is None else tuple(ids)})


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
