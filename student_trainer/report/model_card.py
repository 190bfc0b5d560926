"""The model card: README.md beside the final model, from the run's own results.

Local files and folders are named without their directories, because the card may be
published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from teacher_proto.models.folder import public_name
from teacher_proto.program.files import write_text
from teacher_proto.types import TeacherInfo

from student_trainer.data.files.named import NamedDataset, named_datasets
from student_trainer.report.held_out import held_out_metrics
from student_trainer.settings.train import TrainConfig

CARD_TEMPLATE = "model_card.md.j2"
SHOWN_SETTINGS = (
    "run.steps",
    "run.seed",
    "loss.kind",
    "loss.top_k",
    "loss.temperature",
    "loss.mean",
    "rollout.temperature",
    "rollout.top_p",
    "rollout.group_size",
    "rollout.prompts_per_step",
    "rollout.max_new_tokens",
    "data.max_prompt_tokens",
    "optimizer.lr",
    "optimizer.schedule",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.updates_per_batch",
)


def write_card(
    folder: Path,
    config: TrainConfig,
    teachers: Mapping[str, TeacherInfo],
    summary: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    *,
    prompts: int,
    dropped: int,
) -> Path:
    """Writes ``folder/README.md``.

    Args:
        teachers: those that scored the run, by their names.
        summary: content of summary.json.
        metrics: lines of metrics.jsonl, at least one.
        prompts, dropped: number of prompts trained on, and left out as too long.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Markdown, not HTML: only what goes into the YAML header is escaped.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    text = environment.get_template(CARD_TEMPLATE).render(
        header=_header(config),
        student=public_name(config.student.model),
        teachers=[
            (name if len(teachers) > 1 else "", public_name(teacher.model), teacher)
            for name, teacher in teachers.items()
        ],
        data=_data(config),
        prompts=prompts,
        dropped=dropped,
        summary=summary,
        kept=[
            (what, metrics[0].get(name), metrics[-1].get(name))
            for what, name in (
                ("teacher's mass on its top K", "teacher_support_mass"),
                ("student's mass on the same tokens", "student_support_mass"),
            )
        ],
        results=[
            (m.label, m.at(summary, "before"), m.at(summary, "after"))
            for m in held_out_metrics(summary)
        ],
        settings=[(key, _value(config, key)) for key in SHOWN_SETTINGS if _has(config, key)],
        adapters=config.student.lora is not None and not config.student.lora.merge_final,
        number=_number,
    )
    path = folder / "README.md"
    write_text(path, text)
    return path


def _header(config: TrainConfig) -> list[str]:
    """The lines of the YAML header. JSON strings are YAML strings too."""
    lora = config.student.lora
    lines = [f"library_name: {'peft' if lora and not lora.merge_final else 'transformers'}"]
    lines.append("pipeline_tag: text-generation")
    if public_name(config.student.model) == config.student.model:
        lines.append(f"base_model: {json.dumps(config.student.model)}")
    names = dict.fromkeys(one.name for one in named_datasets(config, "train") if one.on_hub)
    if names:
        lines += ["datasets:", *(f"- {json.dumps(name)}" for name in names)]
    return [*lines, "tags:", "- distillation", "- on-policy", "- lsm-distill"]


def _data(config: TrainConfig) -> str:
    """What the run trained on: its tasks by kind, and its datasets, those on the hub with their
    revisions."""
    tasks = [f"{name} ({task.kind})" for name, task in (config.tasks or {}).items()]
    return ", ".join([*tasks, *map(_told, named_datasets(config, "train"))])


def _told(dataset: NamedDataset) -> str:
    name = public_name(dataset.name)
    at = dataset.revision if dataset.on_hub else None
    return f"{name} at revision {at}" if at else name


def _has(config: TrainConfig, key: str) -> bool:
    section, _, name = key.partition(".")
    return hasattr(getattr(config, section), name)


def _value(config: TrainConfig, key: str) -> str:
    section, _, name = key.partition(".")
    return json.dumps(getattr(getattr(config, section), name))


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
