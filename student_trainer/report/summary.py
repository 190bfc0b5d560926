"""The summary of a run as one JSON object
(docs/reference/student-trainer-metrics.md), and its sample texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from teacher_proto.program.files import write_text

from student_trainer.evaluation.course.values import is_across, measured, measured_of_task
from student_trainer.evaluation.results import Evaluation, Sample
from student_trainer.report.collect import RunFiles, read_run
from student_trainer.teacher.mask_reasons import EXPLAINED, OTHER, metric_of


def write_summary(run_dir: Path) -> dict[str, Any]:
    """Writes ``summary.json`` and ``samples.json`` from the run's files.

    Returns:
        The summary.

    Raises:
        ConfigurationError: a file that it needs is missing or unreadable.
    """
    run = read_run(run_dir)
    summary = summarise(run)
    _write(run_dir / "summary.json", summary)
    _write(run_dir / "samples.json", sample_pairs(run.before, run.after))
    return summary


def summarise(run: RunFiles) -> dict[str, Any]:
    """The summary, in nats, tokens and seconds; None for what was not measured."""
    config, before, after = run.config, run.before, run.after
    evaluation = after or before
    seconds = sum(float(row["step_seconds"]) for row in run.metrics)
    during = [point.evaluation for point in run.points if point.step]
    # The last one may be the closing one too.
    closing = [] if during and during[-1] == after else [after]
    seconds += sum(one.seconds for one in (before, *during, *closing) if one is not None)
    summary: dict[str, Any] = {
        "run": config["run"]["name"],
        **_teachers(run),
        "student": config["student"]["model"],
        "loss": config["loss"]["kind"],
        "top_k": config["loss"]["top_k"],
        "steps": run.metrics[-1]["step"],
        "tokens": sum(int(row["tokens"]) for row in run.metrics),
        "teacher_tokens_saved": summed(run.metrics, "teacher_tokens_saved"),
        "data_responses": summed(run.metrics, "data_responses"),
        "data_tokens": summed(run.metrics, "data_tokens"),
        "seconds": round(seconds, 3),
        "held_out_prompts": evaluation.prompts if evaluation else 0,
        "frozen_rows": _frozen_rows(evaluation),
        "mask_reasons": mask_reasons(run.metrics),
    }
    summary |= _results(before, after)
    for name in evaluation.by_teacher if evaluation else ():
        of_it = [one.by_teacher.get(name) if one else None for one in (before, after)]
        summary |= {f"{key}/{name}": value for key, value in _results(*of_it).items()}
        its = evaluation.by_teacher[name] if evaluation else None
        summary[f"held_out_prompts/{name}"] = its.prompts if its else 0
        summary[f"frozen_rows/{name}"] = _frozen_rows(its)
    for name, one in (evaluation.tasks if evaluation else {}).items():
        summary[f"task_prompts/{name}"] = one.prompts
        of_task = {"before": before, "after": after}
        both = {
            when: measured_of_task(found.tasks.get(name) if found else None)
            for when, found in of_task.items()
        }
        for key in dict.fromkeys(key for values in both.values() for key in values):
            summary |= {f"{key}_{when}/{name}": both[when].get(key) for when in both}
    return summary


def _teachers(run: RunFiles) -> dict[str, str]:
    """The model and the identity of the teacher; of several each under ``KEY/NAME``."""
    evaluation, last = run.after or run.before, run.metrics[-1]
    if "teacher_identity" in last:
        described = evaluation.teacher if evaluation else None
        (settings,) = run.config.get("teachers", {"": run.config.get("teacher")}).values()
        return {
            "teacher": described.model if described else settings["name"],
            "teacher_identity": last["teacher_identity"],
        }
    told: dict[str, str] = {}
    measured = evaluation.by_teacher if evaluation else {}
    for name, settings in run.config["teachers"].items():
        described = measured[name].teacher if name in measured else None
        told[f"teacher/{name}"] = described.model if described else settings["name"]
        told[f"teacher_identity/{name}"] = last[f"teacher_identity/{name}"]
    return told


def _results(before: Evaluation | None, after: Evaluation | None) -> dict[str, Any]:
    """The results of one teacher, or of the only one."""
    across = is_across(after or before)
    both = {"before": measured(before, across=across), "after": measured(after, across=across)}
    return {f"{name}_{when}": one[name] for name in both["before"] for when, one in both.items()}


def summed(metrics: Sequence[Mapping[str, Any]], key: str) -> int | None:
    """The sum of a metric over the steps that have it; None where none has."""
    told = [row[key] for row in metrics if key in row]
    return sum(map(int, told)) if told else None


def mask_reasons(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Share of the positions of all steps that are masked or coarse, of those that teachers with
    another tokenizer scored, by reason; None with one
    tokenizer, and for a run of before there were reasons."""
    told = [row for row in metrics if row.get(metric_of(OTHER)) is not None]
    counts = [_realigned_tokens(row) for row in told]
    if not sum(counts):
        return None
    return {
        name: sum(float(row[metric_of(name)]) * n for row, n in zip(told, counts, strict=True))
        / sum(counts)
        for name in EXPLAINED
    }


def _realigned_tokens(row: Mapping[str, Any]) -> int:
    """Tokens of a step that teachers with another tokenizer scored."""
    one = f"{metric_of(OTHER)}/"
    names = [key.removeprefix(one) for key, value in row.items()
             if key.startswith(one) and value is not None]  # fmt: skip
    return sum(int(row[f"tokens/{name}"]) for name in names) if names else int(row["tokens"])


def _frozen_rows(evaluation: Evaluation | None) -> int:
    if evaluation is None:
        return 0
    frozen = evaluation.frozen or evaluation.frozen_realigned
    own = frozen.rows if frozen else 0
    return own + sum(_frozen_rows(one) for one in evaluation.by_teacher.values())


def sample_pairs(before: Evaluation | None, after: Evaluation | None) -> list[dict[str, Any]]:
    """Prompts with their responses before and after; None for a response that does not exist."""
    earlier = {s.prompt_id: s for s in before.samples} if before else {}
    later = {s.prompt_id: s for s in after.samples} if after else {}
    first = {**later, **earlier}
    return [
        {
            "prompt_id": key,
            "prompt": sample.prompt,
            "before": _response(earlier.get(key)),
            "after": _response(later.get(key)),
        }
        for key, sample in first.items()
    ]


def _response(sample: Sample | None) -> dict[str, Any] | None:
    if sample is None:
        return None
    told: dict[str, Any] = {
        "text": sample.response,
        "tokens": sample.tokens,
        "finished": sample.finished,
    }
    if sample.positions:
        told["positions"] = [asdict(position) for position in sample.positions]
    return told


def _write(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")
