"""How often a student is right on the held-out prompts of a task: several responses to each
prompt, judged by the task's verifier.

The share of right responses is pass@1, and also what others call avg@n. pass@k is the probability
that at least one of k responses is right; of n responses, c of them right, its unbiased estimate is
1 - C(n - c, k) / C(n, k) (arXiv 2107.03374). Every estimate is a mean over prompts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from teacher_proto.errors import ConfigurationError, LsmError

from student_trainer.evaluation.results import ByPrompt, Lengths, TaskResult
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.turns.acting import Acting
from student_trainer.rollout.turns.engine import respond
from student_trainer.settings.evaluation import EvaluationSettings
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student
from student_trainer.tasks.judgement import Judgement, failures, told
from student_trainer.verification.verifiers import Verifiers, waited

# Steps of training count from 1; frozen positions and fresh responses have others below 0.
ACCURACY_STEP = -100

log = logging.getLogger(__name__)


def measure_tasks(
    student: Student,
    verifiers: Verifiers,
    held_out: Sequence[PromptItem],
    settings: EvaluationSettings,
    rollout_settings: RolloutSettings,
    *,
    seed: int,
    acting: Acting | None,
) -> dict[str, TaskResult]:
    """The results of every task that judges and has held-out prompts, by its name. The responses
    are drawn from the same random streams for every student. Those that could not be judged are
    logged.

    Args:
        acting: what plays episodes; None where no task acts.

    Raises:
        LsmError: the student's logits are not finite.
        ConfigurationError: no process that judges can be started, twice in a row. An estimate
            without its responses would be lower for a reason that is not the student's. Or a
            task acts, and nothing plays its episodes.
    """
    unplayed = [name for name in verifiers.judged if name not in verifiers.tasks]
    if unplayed and acting is None:
        raise nothing_plays(unplayed[0])
    found = {}
    for name in verifiers.judged:
        prompts = judged_prompts(held_out, name, settings)
        if prompts:
            drawing = rollout_settings.model_copy(
                update={
                    "group_size": settings.task_responses,
                    "max_new_tokens": settings.max_new_tokens,
                    "batch_size": settings.batch_size,
                }
            )
            responses = respond(student, prompts, drawing, acting, seed=seed, step=ACCURACY_STEP)
            begun = verifiers.submit_rollouts(student, responses, insist=True)
            judged = _all_of(waited(begun, lambda: False), name)
            for line in told(judged):
                log.warning("held-out prompts of the task %s: %s", name, line)
            found[name] = task_result(responses, judged, settings)
    return found


def nothing_plays(task: str) -> ConfigurationError:
    """A task acts, and nothing that plays episodes is given."""
    return ConfigurationError(
        "its responses are episodes, and nothing is there that plays them: they would be written "
        "without a turn of its environment",
        where=f"tasks.{task}",
        fix="pass the Acting of the run (startup/rollouts.py) as `acting`",
    )


def _all_of(found: Sequence[Judgement | None], task: str) -> list[Judgement]:
    """The judgements. Raises LsmError where a response has none."""
    judged = [one for one in found if one is not None]
    if len(judged) < len(found):
        raise LsmError(
            f"{len(found) - len(judged)} of {len(found)} responses to its held-out prompts are "
            "not judged",
            where=f"tasks.{task}",
        )
    return judged


def judged_prompts(
    held_out: Sequence[PromptItem], task: str, settings: EvaluationSettings
) -> list[PromptItem]:
    """The first distinct held-out prompts of a task, at most ``evaluation.task_prompts``."""
    own: dict[str, PromptItem] = {}
    for prompt in held_out:
        if prompt.task == task:
            own.setdefault(prompt.prompt_id, prompt)
    return list(own.values())[: settings.task_prompts]


def task_result(
    responses: Sequence[Rollout], judged: Sequence[Judgement], settings: EvaluationSettings
) -> TaskResult:
    """The result of responses, as many to each prompt, that are judged.

    Args:
        responses: ``settings.task_responses`` to each prompt, prompt after prompt.
        judged: as many, in the same order.

    Raises:
        ValueError: there are more or fewer.
    """
    if len(judged) != len(responses):
        raise ValueError(f"{len(responses)} responses have {len(judged)} judgements")
    each = settings.task_responses
    starts = range(0, len(responses), each)
    right = [sum(one.right for one in judged[start : start + each]) for start in starts]
    scores = [one.score for one in judged if one.score is not None]
    names = sorted({name for one in judged for name in one.values})
    values = {name: [one.values[name] for one in judged if name in one.values] for name in names}
    return TaskResult(
        responses=each,
        score=sum(scores) / len(scores) if scores else None,
        values={name: sum(told) / len(told) for name, told in values.items()},
        failures=failures(judged),
        lengths=Lengths(
            responses=len(responses),
            mean=sum(r.own_length for r in responses) / len(responses),
            truncated_share=sum(not r.finished for r in responses) / len(responses),
        ),
        by_prompt=ByPrompt.of(
            [responses[start].prompt.prompt_id for start in starts],
            {
                f"pass_at_{k}": [pass_at(k, each, count) for count in right]
                for k in settings.pass_sizes
            },
        ),
    )


def pass_at(k: int, responses: int, right: int) -> float:
    """The unbiased estimate of pass@k, of 1 <= k <= ``responses``."""
    return 1 - math.comb(responses - right, k) / math.comb(responses, k)
