"""Runs of the real programs for the proofs, and what two equal runs have equal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from teacher_proto.program.settings_show import to_toml

from student_trainer.run import checkpoint
from student_trainer.run.retention import listing
from student_trainer.run.rng import capture_rng
from student_trainer.settings.train import TrainConfig
from tests.support.faults import Fault
from tests.support.programs import Child, Teacher, Zygote
from tests.trainer.conftest import settings, write_prompts

# Keys of a metrics line that depend on time.
TIMES = ("seconds", "share", "per_second", "time")
# Dropout needs torch's generator, a waiting batch needs the saved rollouts.
SECTIONS: dict[str, dict[str, Any]] = {
    "student": {"lora": {"rank": 2, "dropout": 0.2, "merge_final": False}},
    "rollout": {"max_new_tokens": 12},
    "pipeline": {"staleness": 1},
}


@dataclass
class Room:
    """Where runs of one proof are: one teacher address, one set of prompts."""

    folder: Path
    student: Path
    trainers: Zygote
    teacher: Teacher

    def config(self, name: str, steps: int, **sections: dict[str, Any]) -> TrainConfig:
        merged = {k: {**SECTIONS.get(k, {}), **sections.get(k, {})}
                  for k in {*SECTIONS, *sections}}  # fmt: skip
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        write_prompts(folder / "prompts.jsonl")
        values = settings(self.student, folder, **merged)
        values["run"] |= {"steps": steps, **merged.get("run", {})}
        values["teacher"] = {"address": self.teacher.address, **merged.get("teacher", {})}
        return TrainConfig.model_validate(values)

    def start(self, config: TrainConfig, faults: Sequence[Fault] = ()) -> Child:
        folder = config.run.output_dir.parent
        return self.trainers.start(self.arguments(config), folder, faults)

    def arguments(self, config: TrainConfig) -> list[str]:
        """The arguments of the trainer; its settings are in a file beside the run's folder."""
        file = config.run.output_dir.parent / "config.toml"
        file.write_text(to_toml(config))
        return ["train", str(file)]

    def run(self, config: TrainConfig, faults: Sequence[Fault] = ()) -> int:
        """The exit code of one start of the trainer."""
        return self.start(config, faults).wait()

    def finish(self, config: TrainConfig) -> Path:
        assert self.run(config) == 0, errors(config)
        return config.run.output_dir


def errors(config: TrainConfig) -> str:
    return (config.run.output_dir.parent / "errors").read_text()


def metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(TIMES)} for line in lines]


def tensors(run: Path, step: int) -> dict[str, bytes]:
    """Every file of tensors of a checkpoint, to the byte."""
    folder = run / "checkpoints" / f"step-{step:06d}"
    assert checkpoint.damage(folder) is None
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")}
    assert len(found) >= 3
    return found


def assert_equal(run: Path, expected: Path, step: int) -> None:
    assert [line["step"] for line in metrics(run)] == list(range(1, step + 1))
    assert metrics(run) == metrics(expected)
    assert tensors(run, step) == tensors(expected, step)


def shown(config_folder: Path) -> list[int]:
    """The steps the trainer's starts wrote to their standard output."""
    lines = (config_folder / "output").read_text().splitlines()
    return [int(line.split("/")[0].removeprefix("step ")) for line in lines if "  loss " in line]


def forget(path: Path, what: str) -> None:
    """Rewrites one part of a checkpoint as if it had never been saved, checksums included."""
    optimizer = path / "optimizer.safetensors"
    if what == "rng":
        torch.manual_seed(123)
        save_file(capture_rng(), path / "rng.safetensors")
    elif what == "moments":
        save_file({k: torch.zeros_like(v) for k, v in load_file(optimizer).items()}, optimizer)
    else:
        state = json.loads((path / "state.json").read_text())
        waiting = [{**entry, "position": 0} for entry in state["in_flight"]]
        (path / "state.json").write_text(json.dumps({**state, "position": 0, "in_flight": waiting}))
    manifest = json.loads((path / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = checkpoint._entry(path / name)
    (path / "manifest.json").write_text(json.dumps(manifest))


def truncate(folder: Path, share: float) -> str:
    """Cuts a checkpoint's bytes, its files one after another, at a share of them, as a
    write that ended there; names the file that was cut."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    left = int(sum(p.stat().st_size for p in files) * share)
    cut = ""
    for path in files:
        size = path.stat().st_size
        if left >= size:
            left -= size
        elif not cut:
            cut = str(path.relative_to(folder))
            path.write_bytes(path.read_bytes()[:left])
        else:
            path.unlink()
    return cut


def newest(config: TrainConfig) -> Path:
    return listing(config.run.output_dir / "checkpoints")[0]
