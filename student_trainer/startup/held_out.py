"""The step that looks at the evaluations of a run."""

from __future__ import annotations

from teacher_proto.errors import ConfigurationError

from student_trainer.evaluate_run import kept_positions
from student_trainer.evaluation import evaluated_prompts
from student_trainer.evaluation.frozen import HOLD_OUT
from student_trainer.evaluation.realigned import check_top_k
from student_trainer.evaluation.rows import shared_ids
from student_trainer.startup.start import Start


def held_out(start: Start) -> str:
    """Whether the evaluations before and after the run can be made, on the same positions.

    Raises:
        ConfigurationError: the files of an earlier attempt are missing or are of other
            prompts, the teacher does not return as many ids as are compared, or the run is to
            be evaluated and nothing is held out.
    """
    settings = start.config.evaluation
    prompts = evaluated_prompts(start.prompts.held_out, settings)
    if not prompts and settings.every:
        raise ConfigurationError(
            "there are no held-out prompts to evaluate on",
            where="evaluation.every",
            fix=f"hold some out ({HOLD_OUT}), or set it to 0",
        )
    if not prompts:
        return "nothing is evaluated"
    step = start.resumed.step if start.resumed else 0
    # Before the first checkpoint, what an earlier attempt froze is removed.
    kept = kept_positions(start.run, step, start.prompts.held_out, settings) if step else None
    ids = []
    for name in dict.fromkeys(prompt.teacher for prompt in prompts):
        link = start.teachers[name]
        if link.realigned:
            check_top_k(link, settings.top_k)
            compared = f"the {settings.top_k} most likely ids"
        else:
            compared = f"{shared_ids(start.student, link)} ids"
        ids.append(compared if start.config.teachers is None else f"{compared} of {name}")
    rows = f"{kept.rows} frozen positions of before" if kept else f"{settings.most_rows} positions"
    return f"{len(prompts)} prompts, {rows}, {' or '.join(ids)} of each"
