"""What the wheel holds: all of the three packages, and nothing else."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.packaging.environments import ROOT

PACKAGES = (ROOT / "proto" / "teacher_proto", ROOT / "teacher_server", ROOT / "student_trainer")
DATA = {
    "student_trainer/py.typed",
    "student_trainer/quickstart/held_out.jsonl",
    "student_trainer/quickstart/quickstart-cross.toml",
    "student_trainer/quickstart/quickstart.toml",
    "student_trainer/quickstart/train.jsonl",
    "student_trainer/recipes/depth-pruned-heal.toml",
    "student_trainer/recipes/eight-gpus.toml",
    "student_trainer/recipes/forward-kl.toml",
    "student_trainer/recipes/published/gsm8k-lora.toml",
    "student_trainer/recipes/jsd.toml",
    "student_trainer/recipes/laptop-cpu.toml",
    "student_trainer/recipes/multi-task.toml",
    "student_trainer/recipes/one-gpu-lora.toml",
    "student_trainer/recipes/one-gpu.toml",
    "student_trainer/recipes/published/paper-math.toml",
    "student_trainer/recipes/published/paper-multi-task.toml",
    "student_trainer/recipes/reasoning-gym.toml",
    "student_trainer/recipes/published/sampled-token.toml",
    "student_trainer/recipes/self-distillation.toml",
    "student_trainer/recipes/two-nodes.toml",
    "student_trainer/report/model_card.md.j2",
    "student_trainer/report/page/comparison.html.j2",
    "student_trainer/report/page/page.html.j2",
    "student_trainer/report/page/parts.html.j2",
    "student_trainer/report/page/report.css",
    "student_trainer/report/page/report.html.j2",
    "student_trainer/report/page/report.js",
    "teacher_proto/page/static/app/ask.js",
    "teacher_proto/page/static/app/docs.js",
    "teacher_proto/page/static/app/form.js",
    "teacher_proto/page/static/app/live.js",
    "teacher_proto/page/static/app/main.js",
    "teacher_proto/page/static/app/paste.js",
    "teacher_proto/page/static/app/prometheus.js",
    "teacher_proto/page/static/app/query.js",
    "teacher_proto/page/static/app/reply.js",
    "teacher_proto/page/static/docs.css",
    "teacher_proto/page/static/docs.html",
    "teacher_proto/page/static/index.html",
    "teacher_proto/page/static/offline.js",
    "teacher_proto/page/static/page.css",
    "teacher_proto/page/static/view/bars.js",
    "teacher_proto/page/static/view/chart.js",
    "teacher_proto/page/static/view/compare.js",
    "teacher_proto/page/static/view/details.js",
    "teacher_proto/page/static/view/dom.js",
    "teacher_proto/page/static/view/look.js",
    "teacher_proto/page/static/view/places.js",
    "teacher_proto/page/static/view/scales.js",
    "teacher_proto/page/static/view/segments.js",
    "teacher_proto/page/static/view/sources.js",
    "teacher_proto/page/static/view/strip.js",
    "teacher_proto/page/static/view/text.js",
    "teacher_proto/py.typed",
    "teacher_proto/v1/array.proto",
    "teacher_proto/v1/render.proto",
    "teacher_proto/v1/score.proto",
    "teacher_proto/v1/service.proto",
    "teacher_proto/v1/teacher.proto",
    "teacher_proto/v1/tokenizer.proto",
    "teacher_server/py.typed",
}


@pytest.fixture(scope="session")
def held(wheel: Path) -> set[str]:
    """The names in the wheel, its metadata aside."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    (metadata,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    assert metadata.startswith("lsm_distill-")
    return {name for name in names if not name.startswith(metadata)}


def test_the_sources_are_those_of_the_three_packages(held: set[str]) -> None:
    sources = {
        str(file.relative_to(package.parent))
        for package in PACKAGES
        for file in package.rglob("*.py*")
        if file.suffix in (".py", ".pyi")
    }
    assert {name for name in held if name.endswith((".py", ".pyi"))} == sources


def test_the_data_files_are_all_there_and_nothing_else(held: set[str]) -> None:
    assert {name for name in held if not name.endswith((".py", ".pyi"))} == DATA
