"""Checks at start that our way through a model gives the model's own numbers."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.errors import ConfigurationError
from teacher_proto.rows import required
from teacher_proto.types import Int32
from torch import Tensor

from teacher_server.engines.base import Job, JobResult, ScoredSpan
from teacher_server.engines.torch.head import LanguageModelHead
from teacher_server.engines.torch.packing import Packing
from teacher_server.engines.torch.prefix_tree import prefix_tree
from teacher_server.engines.torch.trunk import Trunk

logger = logging.getLogger(__name__)

PROBE_TOKENS = 24
# Greatest |difference| of logits over their greatest size, and greatest mean
# relative distance of hidden states: about eight roundings of each dtype.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
HIDDEN_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}


def probe_ids(length: int, vocabulary_size: int, seed: int = 0) -> Int32:
    """Random ids, the same ones every time."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, vocabulary_size, length).astype(np.int32)


def check_model(model: Any, trunk: Trunk, head: LanguageModelHead, packing: Packing) -> Packing:
    """Compares our passes with the model's own forward on a short probe.

    Returns ``packing`` with the ways of batching switched off that this model
    does not survive, with a warning.

    Raises:
        ConfigurationError: the head or the causality of the model is not what
            this engine computes.
    """
    length = min(PROBE_TOKENS, int(getattr(trunk.config, "max_position_embeddings", PROBE_TOKENS)))
    ids = probe_ids(length, model.get_input_embeddings().weight.shape[0])
    with torch.inference_mode():
        alone = trunk.flat([ids], [np.arange(length)], _no_check)
        _check_head(model, head, ids, alone)
        changed = ids.copy()
        changed[-1] = ids[0] if ids[0] != ids[-1] else ids[0] ^ 1
        earlier = trunk.flat([changed], [np.arange(length - 1)], _no_check)
        if _distance(earlier, alone[:-1]) > HIDDEN_TOLERANCE[alone.dtype]:
            raise ConfigurationError(
                "its hidden states depend on later tokens, so it is not causal",
                where="model",
                fix="give a decoder-only language model",
            )
        if not packing.alone:
            packing = _check_batching(trunk, packing, ids, alone)
    return packing


def _check_head(model: Any, head: LanguageModelHead, ids: Int32, hidden: Tensor) -> None:
    tokens = torch.from_numpy(ids.astype(np.int64)).unsqueeze(0).to(hidden.device)
    reference = model(input_ids=tokens, use_cache=False).logits[0].to(torch.float32)
    ours = torch.cat(
        [
            head.treatment.apply_(head.logits(hidden[start:stop]).to(torch.float32, copy=True))
            for start, stop in pairwise([*range(0, len(hidden), head.block_rows), len(hidden)])
        ]
    )
    if ours.shape != reference.shape:
        raise ConfigurationError(
            f"the head gives {tuple(ours.shape)} logits, the model {tuple(reference.shape)}",
            where="model",
            fix="serve this architecture with another engine",
        )
    finite = torch.isfinite(reference)
    if not finite.any():
        raise ConfigurationError("its logits are not finite", where="model")
    size = float(reference[finite].abs().max())
    error = float((ours - reference)[finite].abs().max())
    if not error <= TOLERANCE[hidden.dtype] * max(size, 1.0):
        raise ConfigurationError(
            f"its own logits differ by {error:.3g} from those of its last hidden states and head",
            where="model",
            fix="this engine does not know the treatment of this model's logits; "
            "serve it with another engine",
        )


def _check_batching(trunk: Trunk, packing: Packing, ids: Int32, alone: Tensor) -> Packing:
    """Right padding beside a longer neighbour; shared, left-padded prompts; prefix trees."""
    short = len(ids) // 2
    tolerance = HIDDEN_TOLERANCE[alone.dtype]
    rows = [np.arange(len(ids)), np.arange(short)]
    padded = trunk.flat([ids, ids[:short]], rows, _no_check)
    if _distance(padded, torch.cat([alone, alone[:short]])) > tolerance:
        logger.warning("this model's numbers depend on padding: every sequence runs alone")
        return replace(packing, alone=True, share_prompts=False)
    if not packing.share_prompts:
        return packing
    prompts = [ids[: short + 1], ids[: short // 2 + 1]]
    tails = [ids[short:-1], ids[short // 2 : short]]
    tail_rows: list[NDArray[np.int64]] = [np.arange(len(tail)) for tail in tails]
    cached = trunk.prompts(prompts, _no_check)
    shared = trunk.continuations(cached, [0, 1], tails, tail_rows, _no_check)
    expected = torch.cat([alone[short:-1], alone[short // 2 : short]])
    if _distance(shared, expected) > tolerance:
        logger.warning("this model's prompts cannot be shared: every sequence reads its own")
        return replace(packing, share_prompts=False, prefix_trees=False)
    if packing.prefix_trees and not _reads_trees(trunk, ids, alone):
        logger.warning("this model cannot read prefix trees: every sequence reads its own prefix")
        return replace(packing, prefix_trees=False)
    return packing


def _reads_trees(trunk: Trunk, ids: Int32, alone: Tensor) -> bool:
    """The probe as the trunk of a tree that a branch leaves at every token."""
    tail = ids[2:]
    others = np.where(tail == 0, 1, 0).astype(np.int32)
    left = [np.append(tail[:length], others[length]) for length in range(len(tail))]
    ordered = sorted(branch.tobytes() for branch in (tail, *left))
    tree = prefix_tree(int(ids[1]), ordered)
    rows = tree.paths[ordered.index(tail.tobytes())]
    try:
        found = trunk.prefix_tree(trunk.prompts([ids[:2]], _no_check), tree, rows, _no_check)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        logger.warning("a prefix tree fails: %s: %s", type(error).__name__, error)
        return False
    return _distance(found, alone[1:]) <= HIDDEN_TOLERANCE[alone.dtype]


def _distance(ours: Tensor, reference: Tensor) -> float:
    """Mean over rows of |ours - reference| / |reference|; inf when not finite."""
    difference = (ours - reference).to(torch.float32).norm(dim=-1)
    value = float((difference / reference.to(torch.float32).norm(dim=-1)).mean())
    return value if np.isfinite(value) else float("inf")


def _no_check() -> None:
    return


def self_score_job(vocabulary_size: int, max_length: int) -> Job:
    """A small group over random ids, for the score an engine must pass before it serves."""
    length = min(PROBE_TOKENS, max_length)
    ids = probe_ids(length, vocabulary_size, seed=1)
    prompt, tail = ids[: length // 2], ids[length // 2 :]
    spans = tuple(
        ScoredSpan(tail[:count], np.arange(count, dtype=np.int32))
        for count in sorted({1, len(tail)})
    )
    return Job(prompt, spans, min(8, vocabulary_size), 1.0, vocabulary_size)


def check_self_score(result: JobResult) -> None:
    """Raises ConfigurationError unless the rows are finite with a mass of at most 1."""
    for rows in result.rows:
        if rows is None:
            raise ConfigurationError("its log-probabilities are not finite", where="model")
        log_probs = required(rows.support, "support").log_probs
        mass = np.exp(log_probs.astype(np.float64)).sum(axis=-1)
        if not (mass <= 1.0 + 1e-4).all():
            raise ConfigurationError(
                f"its supports have a mass of {mass.max():.6f}, above 1", where="model"
            )
