"""The evaluation of a run with several teachers: each on the held-out prompts that name it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from student_trainer.evaluation.results import Evaluation, FrozenPositions, Lengths
from student_trainer.rollout.base import PromptItem


def part_of_teacher(
    frozen: FrozenPositions, prompts: Sequence[PromptItem], teacher: str
) -> FrozenPositions:
    """The frozen positions after the prompts that one teacher scores.

    Args:
        prompts: those of ``frozen.prompts``, in order.
    """
    its = [place for place, prompt in enumerate(prompts) if prompt.teacher == teacher]
    moved = {before: now for now, before in enumerate(its)}
    return replace(
        frozen,
        prompts=tuple(frozen.prompts[place] for place in its),
        continuations=tuple(
            replace(one, place=moved[one.place])
            for one in frozen.continuations
            if one.place in moved
        ),
    )


def together(
    by_teacher: Mapping[str, Evaluation], frozen: FrozenPositions, samples: int
) -> Evaluation:
    """One evaluation of those by the teachers' names, at least one. Divergences from different
    teachers have no common mean: they are found in ``by_teacher``.

    Args:
        frozen: the positions of all of them.
        samples: how many samples to keep, of the teachers in turn.
    """
    every = list(by_teacher.values())
    lengths = [one.lengths for one in every if one.lengths is not None]
    count = sum(one.responses for one in lengths)
    turns = [one.samples[n] for n in range(samples) for one in every if n < len(one.samples)]
    return Evaluation(
        prompts=sum(one.prompts for one in every),
        frozen=None,
        fresh=None,
        lengths=Lengths(
            responses=count,
            mean=sum(one.mean * one.responses for one in lengths) / count,
            truncated_share=sum(one.truncated_share * one.responses for one in lengths) / count,
        )
        if count
        else None,
        samples=tuple(turns[:samples]),
        frozen_digest=frozen.digest,
        teacher=None,
        seconds=sum(one.seconds for one in every),
        by_teacher=dict(by_teacher),
    )
