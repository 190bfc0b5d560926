"""Batches that wait for their update, as a checkpoint keeps them.

With staleness s a checkpoint between two steps holds s batches. Their tokens are saved,
because the weights that wrote them are gone, and the ids of their prompts, because which
prompts a step takes depends on what the teacher can read. Their scores are requested again,
because the teacher gives the same ones again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from teacher_proto.types import Float32
from torch import Tensor

from student_trainer.distributed.world import World
from student_trainer.pipeline import Batch, Pipeline
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.episode import episodes_as_bytes, episodes_of_bytes

# Stands for a version of the weights that is not known.
UNKNOWN = -1


@dataclass(frozen=True)
class PendingBatch:
    """A batch without its rollouts; attributes as in ``Batch``, and ``prompt_ids`` of its
    responses, which is None in a checkpoint of before they were kept."""

    step: int
    position: int
    written_after: int
    prompt_ids: tuple[str, ...] | None = None


def describe_batches(batches: Sequence[Batch]) -> tuple[PendingBatch, ...]:
    return tuple(
        PendingBatch(
            b.step, b.position, b.written_after, tuple(r.prompt.prompt_id for r in b.rollouts)
        )
        for b in batches
    )


def rollout_tensors(batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The batches' rollouts, by ``step/field``: tokens and log-probabilities of the
    responses one after another, their supports and nuclei if they are known, and
    for each response its length, index, whether it finished and the version of the weights that
    wrote it. Where some are scored in part,
    also how many first tokens of each are; a support is then of these alone. Of episodes also
    which tokens the student wrote, and how they went, as JSON."""
    kept: dict[str, Tensor] = {}
    for batch in batches:
        rollouts = batch.rollouts
        fields = {
            "tokens": np.concatenate([r.token_ids for r in rollouts]),
            "log_probs": np.concatenate([r.log_probs for r in rollouts]),
            "lengths": np.array([len(r.token_ids) for r in rollouts], np.int32),
            "indices": np.array([r.index for r in rollouts], np.int32),
            "finished": np.array([r.finished for r in rollouts], np.uint8),
        }
        scored = np.array([len(part.token_ids) for part in batch.parts], np.int32)
        if (scored < fields["lengths"]).any():
            fields["scored"] = scored
        supports = [part.support_ids for part in batch.parts if part.support_ids is not None]
        if supports:
            fields["support_ids"] = np.concatenate(supports)
        if any(r.origin == "data" for r in rollouts):
            fields["of_data"] = np.array([r.origin == "data" for r in rollouts], np.uint8)
        if any(r.nucleus_mass is not None for r in rollouts):
            fields["nucleus_mass"] = np.concatenate([_masses(r) for r in rollouts])
        if any(r.episode is not None for r in rollouts):
            fields["own"] = np.concatenate([r.own_rows for r in rollouts]).astype(np.uint8)
            fields["episodes"] = episodes_as_bytes([r.episode for r in rollouts])
        versions = [UNKNOWN if r.weights_version is None else r.weights_version for r in rollouts]
        fields["weights_versions"] = np.array(versions, np.int64)
        kept |= {f"{batch.step}/{name}": torch.from_numpy(v) for name, v in fields.items()}
    return kept


def batches_of_world(batches: Sequence[Batch], pipeline: Pipeline, world: World) -> Sequence[Batch]:
    """The batches with the rollouts of every rank, without scores.

    Args:
        batches: of this rank; every rank has those of the same steps.
        pipeline: that they are of.
    """
    if not world.several:
        return batches
    numbers = {id(prompt): number for number, prompt in enumerate(pipeline.prompts)}
    mine: dict[str, Tensor] = {}
    for batch in batches:
        for place, rollout, part in zip(pipeline.places, batch.rollouts, batch.parts, strict=True):
            arrays = _arrays(rollout, part, numbers[id(rollout.prompt)])
            mine |= {
                f"{batch.step}/{place}/{name}": torch.from_numpy(array)
                for name, array in arrays.items()
            }
    every: dict[str, dict[str, Any]] = {}
    for of_rank in world.gather_tensors(mine):
        for key, tensor in of_rank.items():
            response, _, name = key.rpartition("/")
            every.setdefault(response, {})[name] = tensor.numpy()
    whole = []
    for batch in batches:
        count = sum(key.startswith(f"{batch.step}/") for key in every)
        found = [_of_arrays(every[f"{batch.step}/{p}"], pipeline.prompts) for p in range(count)]
        rollouts, parts = [one for one, _ in found], [part for _, part in found]
        whole.append(replace(batch, rollouts=rollouts, parts=parts, scores={}))
    return whole


def _arrays(rollout: Rollout, part: Rollout, prompt: int) -> dict[str, np.ndarray[Any, Any]]:
    """A rollout and what is scored of it, as arrays by name."""
    version = UNKNOWN if rollout.weights_version is None else rollout.weights_version
    of_data, scored = rollout.origin == "data", len(part.token_ids)
    facts = [prompt, rollout.index, rollout.finished, version, of_data, scored]
    found: dict[str, np.ndarray[Any, Any] | None] = {
        "facts": np.array(facts, np.int64),
        "token_ids": rollout.token_ids,
        "log_probs": rollout.log_probs,
        "nucleus_mass": rollout.nucleus_mass,
        "support_ids": part.support_ids,
        "own": None if rollout.own is None else rollout.own.astype(np.uint8),
        "episode": None if rollout.episode is None else episodes_as_bytes([rollout.episode]),
    }
    return {name: array for name, array in found.items() if array is not None}


def _of_arrays(arrays: Mapping[str, Any], prompts: Sequence[PromptItem]) -> tuple[Rollout, Rollout]:
    """What ``_arrays`` was given."""
    prompt, index, finished, version, of_data, scored = arrays["facts"].tolist()
    own, episode = arrays.get("own"), arrays.get("episode")
    rollout = Rollout(
        prompts[prompt],
        index,
        arrays["token_ids"],
        arrays["log_probs"],
        bool(finished),
        nucleus_mass=arrays.get("nucleus_mass"),
        origin="data" if of_data else "student",
        weights_version=None if version == UNKNOWN else version,
        own=None if own is None else own.astype(np.bool_),
        episode=None if episode is None else episodes_of_bytes(episode)[0],
    )
    part = rollout.first(scored)
    support = arrays.get("support_ids")
    return rollout, part if support is None else replace(part, support_ids=support)


def _masses(rollout: Rollout) -> Float32:
    """float32 [n]: NaN of an answer of the data, which nobody drew."""
    if rollout.nucleus_mass is None:
        return np.full(len(rollout.token_ids), np.nan, np.float32)
    return rollout.nucleus_mass


def restore_batches(
    described: Sequence[PendingBatch], kept: Mapping[str, Tensor], pipeline: Pipeline
) -> list[Batch]:
    """The batches that ``describe_batches`` and ``rollout_tensors`` were given, up to the first
    with a response whose prompt no step takes any more: it and those after it have to be
    written anew. A rank has of each batch the rollouts of its own groups."""
    found: list[Batch] = []
    for entry in described:
        tokens, log_probs, lengths, indices, finished = (
            kept[f"{entry.step}/{name}"].numpy()
            for name in ("tokens", "log_probs", "lengths", "indices", "finished")
        )
        scored = kept.get(f"{entry.step}/scored", torch.from_numpy(lengths)).numpy()
        supports = kept.get(f"{entry.step}/support_ids")
        masses = kept.get(f"{entry.step}/nucleus_mass")
        of_data = kept.get(f"{entry.step}/of_data", torch.zeros(len(lengths))).numpy()
        unknown = torch.full((len(lengths),), UNKNOWN)
        versions = kept.get(f"{entry.step}/weights_versions", unknown).tolist()
        owns, went = kept.get(f"{entry.step}/own"), kept.get(f"{entry.step}/episodes")
        episodes = [None] * len(lengths) if went is None else episodes_of_bytes(went.numpy())
        ends, scored_ends = np.cumsum(lengths), np.cumsum(scored)
        prompts = _prompts(entry, pipeline)
        if prompts is None:
            break
        rollouts = [
            Rollout(
                prompts[place],
                int(indices[place]),
                tokens[end - length : end].copy(),
                log_probs[end - length : end].copy(),
                bool(finished[place]),
                nucleus_mass=None
                if masses is None or of_data[place]
                else masses.numpy()[end - length : end].copy(),
                origin="data" if of_data[place] else "student",
                weights_version=None if versions[place] == UNKNOWN else versions[place],
                own=None
                if owns is None or episodes[place] is None
                else owns.numpy()[end - length : end].astype(np.bool_),
                episode=episodes[place],
            )
            for place, (end, length) in enumerate(zip(ends, lengths, strict=True))
        ]
        parts = [r.first(int(count)) for r, count in zip(rollouts, scored, strict=True)]
        if supports is not None:
            parts = [
                replace(part, support_ids=supports.numpy()[end - count : end].copy())
                for part, end, count in zip(parts, scored_ends, scored, strict=True)
            ]
        own = pipeline.places
        found.append(
            Batch(
                entry.step,
                entry.position,
                entry.written_after,
                [rollouts[place] for place in own],
                [parts[place] for place in own],
            )
        )
    return found


def _prompts(entry: PendingBatch, pipeline: Pipeline) -> list[PromptItem] | None:
    """The prompt of each response; None where one is not trained on any more, or it is not known
    which of several it is."""
    left_out = pipeline.order.left_out
    placed = pipeline.placed(entry.step, entry.position)
    if entry.prompt_ids is None:
        return None if left_out else placed
    if entry.prompt_ids == tuple(prompt.prompt_id for prompt in placed):
        return placed
    taken: dict[str, list[PromptItem]] = {}
    for index, prompt in enumerate(pipeline.prompts):
        if index not in left_out:
            taken.setdefault(prompt.prompt_id, []).append(prompt)
    found = [taken.get(prompt_id, []) for prompt_id in entry.prompt_ids]
    # Of prompts that the student reads alike, one teacher may score some and another the others.
    if any(not same or any(_other(prompt, same[0]) for prompt in same) for same in found):
        return None
    return [same[-1] for same in found]


def _other(one: PromptItem, another: PromptItem) -> bool:
    """Whether two prompts that the student reads alike are scored otherwise."""
    only = [None if p.for_teacher is None else p.for_teacher.source for p in (one, another)]
    return one.teacher != another.teacher or only[0] != only[1]
