"""State of the random generators that a step draws from.

Rollouts, the order of prompts and the choice of rows for metrics draw from streams that
are derived anew from the seed (rollout/sampling.py). Dropout draws from torch's generator
of the device that the student is on, on every rank from its own. Nothing else is
random, and nothing draws from Python's or NumPy's global generators.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from student_trainer.distributed.world import World
from student_trainer.rollout.sampling import stream

log = logging.getLogger(__name__)

CPU = torch.device("cpu")


def capture_rng(device: torch.device = CPU) -> dict[str, Tensor]:
    """The state of torch's generators for the CPU and for the student's device, uint8.

    Which GPU it is, and how many there are, does not count: a run may go on where its
    device has another number.
    """
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_rng(states: Mapping[str, Tensor], device: torch.device = CPU) -> None:
    """Sets the generators to a captured state.

    Earlier versions kept one state for every GPU of the machine, by its number. Where the
    state of the student's device is not among them, its generator stays as the seed has
    set it, with a warning: what dropout draws is then not what it would have drawn.
    """
    torch.set_rng_state(states["torch"])
    if device.type != "cuda":
        return
    number = torch.cuda.current_device() if device.index is None else device.index
    state = states.get("cuda", states.get(f"cuda{number}"))
    if state is not None:
        torch.cuda.set_rng_state(state, device)
        return
    kept = sorted(name for name in states if re.fullmatch(r"cuda\d+", name))
    log.warning(
        "the checkpoint has no state of the generator of %s (it has %s): dropout, where there is "
        "any, is drawn from the seed anew",
        device, ", ".join(kept) or "none of a GPU",
    )  # fmt: skip


def seeded_rng(seed: int, step: int, rank: int, device: torch.device = CPU) -> dict[str, Tensor]:
    """The states that the generators of a rank begin with after ``step`` completed steps, where
    no earlier states of this rank go on. The generators themselves stay as they are."""
    number = int(stream("generators of a rank", seed, step, rank).integers(2**63))
    states = {"torch": torch.Generator().manual_seed(number).get_state()}
    if device.type == "cuda":
        states["cuda"] = torch.Generator(device).manual_seed(number).get_state()
    return states


def rng_of_world(states: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """The states of all ranks: those of rank 0 by their names, those of the others as
    ``rank-R/NAME``."""
    first, *others = world.gather_tensors(states)
    for rank, of_rank in enumerate(others, 1):
        first |= {f"rank-{rank}/{name}": state for name, state in of_rank.items()}
    return first


def rng_of_rank(
    kept: Mapping[str, Tensor], world: World, *, seed: int, step: int, device: torch.device = CPU
) -> dict[str, Tensor]:
    """What ``rng_of_world`` has kept of a rank. Where as many ranks as now have not kept it,
    generators begin anew."""
    ranks = {name.split("/")[0] for name in kept if "/" in name}
    if len(ranks) + 1 != world.size:
        log.info("%d ranks go on from %d: dropout is drawn anew", world.size, len(ranks) + 1)
        return seeded_rng(seed, step, world.rank, device)
    prefix = f"rank-{world.rank}/" if world.rank else ""
    return {
        name.removeprefix(prefix): state
        for name, state in kept.items()
        if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
    }
