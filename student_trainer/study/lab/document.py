"""What ``student-trainer study lab`` leaves in its folder: links to the models, prompts, and
``lab.json`` with every figure."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from teacher_proto.program.files import write_text

from student_trainer.quickstart.cache import MANIFEST
from student_trainer.study.lab.language.task import LabTask
from student_trainer.study.lab.making import folder_of
from student_trainer.study.lab.recipe import STUDENT_BARS, TASKS, TEACHER_BARS, Run
from student_trainer.tasks.base import Split

DOCUMENT = "lab.json"


def link_models(out: Path, runs: Sequence[Run]) -> dict[str, Path]:
    """Makes ``out/NAME`` a relative link to each model that the cache has.

    Returns:
        Name -> folder in the cache.
    """
    there = {run.name: folder_of(run) for run in runs if folder_of(run).exists()}
    out.mkdir(parents=True, exist_ok=True)
    for name, folder in there.items():
        link = out / name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(folder, out.resolve()))
    return there


def write_prompts(out: Path, names: Sequence[str]) -> None:
    """Writes the prompts of tasks as ``NAME-train.jsonl`` and ``NAME-held-out.jsonl``."""
    splits: tuple[Split, ...] = ("train", "held_out")
    for name in names:
        for split in splits:
            rows = TASKS[name].prompts(split, _no_datasets)
            lines = [json.dumps({"prompt": row["prompt"]}) for _, row in rows]
            file = out / f"{name}-{split.replace('_', '-')}.jsonl"
            write_text(file, "\n".join(lines) + "\n")


def _no_datasets(*arguments: object, **named: object) -> Any:
    raise AssertionError("a task of the laboratory reads no dataset")


def describe(
    tasks: Sequence[str],
    models: Mapping[str, Path],
    refused: Mapping[str, str],
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """The document: where it is from, the bars, the settings of these tasks, the figures of each
    model, and the runs that left none, with the reason."""
    found = {}
    for name, folder in sorted(models.items()):
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = facts.pop("files")
        weights = files["model.safetensors"]["sha256"]
        found[name] = {**facts, "folder": folder.name, "weights_sha256": weights}
    return {
        **origin,
        "bars": {"teacher": TEACHER_BARS, "student": STUDENT_BARS},
        "tasks": {name: settings_of(TASKS[name]) for name in tasks},
        "models": found,
        "refused": dict(refused),
    }


def settings_of(task: LabTask) -> dict[str, Any]:
    """The settings of ``[tasks.NAME]`` for a task."""
    return {
        "kind": task.kind,
        **task.model_dump(mode="json", include={"items", "count", "held_out", "seed"}),
    }


def write_document(out: Path, document: Mapping[str, Any]) -> Path:
    """Writes ``lab.json``; returns its path."""
    path = out / DOCUMENT
    write_text(path, json.dumps(document, indent=2) + "\n")
    return path
