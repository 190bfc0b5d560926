"""Checks at the start that this engine's way through a model gives the model's own numbers."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import Int32
from torch import Tensor

from teacher_server.engines.probe import PROBE_TOKENS, probe_ids
from teacher_server.engines.torch.head import LanguageModelHead
from teacher_server.engines.torch.packing import Packing
from teacher_server.engines.torch.prefix_tree import prefix_tree
from teacher_server.engines.torch.trunk import Trunk

logger = logging.getLogger(__name__)

# The greatest |difference| of logits, as a share of the greatest |logit|, and the greatest
# mean relative distance of hidden states: about eight roundings of each dtype.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
HIDDEN_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}


def check_model(model: Any, trunk: Trunk, head: LanguageModelHead, packing: Packing) -> Packing:
    """Compares the engine's passes with the model's own forward on a few random tokens.

    Returns ``packing`` without the ways of batching that change this model's numbers;
    each of them is logged as a warning.

    Raises:
        ConfigurationError: the model is not causal, or its logits are not what its head
            and the treatment of the logits give.
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
    ours = head.logits(hidden)
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
    """Tries padding on the right, shared prompts with padding on the left, and prefix trees."""
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
    """Whether the ids read alike as the stem of a tree that another path leaves at every token."""
    tail = ids[2:]
    others = np.where(tail == 0, 1, 0).astype(np.int32)
    left = [np.append(tail[:length], others[length]) for length in range(len(tail))]
    ordered = sorted(path.tobytes() for path in (tail, *left))
    tree = prefix_tree(int(ids[1]), ordered)
    rows = tree.paths[ordered.index(tail.tobytes())]
    try:
        found = trunk.prefix_tree(trunk.prompts([ids[:2]], _no_check), tree, rows, _no_check)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        logger.warning("a prefix tree fails: %s: %s", type(error).__name__, error)
        return False
    return _distance(found, alone[1:]) <= HIDDEN_TOLERANCE[alone.dtype]


def _distance(ours: Tensor, reference: Tensor) -> float:
    """Mean over rows of |ours - reference| / |reference|; infinite where it is not finite."""
    difference = (ours - reference).to(torch.float32).norm(dim=-1)
    value = float((difference / reference.to(torch.float32).norm(dim=-1)).mean())
    return value if np.isfinite(value) else float("inf")


def _no_check() -> None:
    return
