"""The summary of a run as one JSON object
(docs/reference/student-trainer-metrics.md), and its sample texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from teacher_proto.program.files import write_text

from student_trainer.evaluation.results import (
    OF_FULL_ROWS,
    Evaluation,
    FullDivergence,
    Lengths,
    Sample,
)
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
    seconds += sum(e.seconds for e in (before, after) if e is not None)
    summary: dict[str, Any] = {
        "run": config["run"]["name"],
        "teacher": evaluation.teacher.model if evaluation else config["teacher"]["name"],
        "teacher_identity": run.metrics[-1]["teacher_identity"],
        "student": config["student"]["model"],
        "loss": config["loss"]["kind"],
        "top_k": config["loss"]["top_k"],
        "steps": run.metrics[-1]["step"],
        "tokens": sum(int(row["tokens"]) for row in run.metrics),
        "seconds": round(seconds, 3),
        "held_out_prompts": evaluation.prompts if evaluation else 0,
        "frozen_rows": _frozen_rows(evaluation),
        "mask_reasons": mask_reasons(run.metrics),
    }
    for name, found in (("before", before), ("after", after)):
        summary |= _divergence("", name, found.frozen if found else None)
    for name, found in (("before", before), ("after", after)):
        summary |= _divergence("fresh_", name, found.fresh if found else None)
        summary |= _lengths(name, found.lengths if found else None)
    if evaluation and (evaluation.frozen_realigned or evaluation.fresh_realigned):
        for name, found in (("before", before), ("after", after)):
            summary |= _across(name, found)
    return summary


def mask_reasons(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Share of the positions of all steps that are masked or coarse, by reason; None with one
    tokenizer, and for a run of before there were reasons."""
    told = [row for row in metrics if row.get(metric_of(OTHER)) is not None]
    tokens = sum(int(row["tokens"]) for row in told)
    if not tokens:
        return None
    return {
        name: sum(float(row[metric_of(name)]) * int(row["tokens"]) for row in told) / tokens
        for name in EXPLAINED
    }


def _across(when: str, found: Evaluation | None) -> dict[str, Any]:
    """The results of a run across tokenizers, under names of their own."""
    values: dict[str, Any] = {}
    for prefix, part in (
        ("support", found.frozen_realigned if found else None),
        ("fresh_support", found.fresh_realigned if found else None),
    ):
        for name in OF_FULL_ROWS:
            values[f"{prefix}_{name}_{when}"] = getattr(part, name) if part else None
        coarse = part.coarse_rows if part else None
        every = part.rows + part.masked_rows + (coarse or 0) if part else 0
        values[f"{prefix}_masked_share_{when}"] = part.masked_rows / every if part else None
        values[f"{prefix}_coarse_share_{when}"] = None if coarse is None else coarse / every
        for name in ("reverse_kl", "forward_kl", "student_rest", "teacher_rest"):
            of_coarse = getattr(part.coarse, name) if part and part.coarse else None
            values[f"{prefix}_coarse_{name}_{when}"] = of_coarse
        values[f"{prefix}_rows_{when}"] = part.rows if part else 0
    likelihood = found.likelihood if found else None
    for side in ("student", "teacher"):
        name = f"{side}_bits_per_byte"
        values[f"{name}_{when}"] = getattr(likelihood, name) if likelihood else None
    return values


def _frozen_rows(evaluation: Evaluation | None) -> int:
    frozen = (evaluation.frozen or evaluation.frozen_realigned) if evaluation else None
    return frozen.rows if frozen else 0


def _divergence(prefix: str, when: str, found: FullDivergence | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        f"{prefix}{name}_{when}": getattr(found, name) if found else None
        for name in ("reverse_kl", "forward_kl", "agreement")
    }
    if prefix:
        values[f"{prefix}rows_{when}"] = found.rows if found else 0
    return values


def _lengths(when: str, found: Lengths | None) -> dict[str, Any]:
    return {
        f"rollout_length_{when}": found.mean if found else None,
        f"truncated_share_{when}": found.truncated_share if found else None,
    }


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
