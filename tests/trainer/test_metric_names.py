"""metrics.jsonl and summary.json hold what the reference explains, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from student_trainer.run.directory import read_metrics
from student_trainer.settings.train import TrainConfig
from student_trainer.train import train
from tests.trainer.processes import Server, serve
from tools.reference.trainer_metrics import (
    MEASURED,
    METRICS,
    REWARD_METRICS,
    SUMMARY,
    TASK_MEASURED,
    TASK_METRICS,
    Key,
    measured_across,
)

MakeConfig = Callable[..., TrainConfig]
TEXTS = ("the sun", "a day was", "we read", "it is")
EVALUATION = {"prompts": 2, "frozen_rows": 256, "max_new_tokens": 32, "top_k": 48}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), default=tiny_model_dir) as running:
        yield running


@pytest.fixture
def run(make_config: MakeConfig, server: Server, tmp_path: Path) -> Callable[..., Path]:
    def made(name: str, **sections: Any) -> Path:
        rows = sections.pop("rows", [{"prompt": text} for text in TEXTS])
        (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        sections["data"] = {"held_out_fraction": 0.5, **sections.get("data", {})}
        weights = sections.pop("weights", [])
        sections["rollout"] = {"prompts_per_step": 2}
        sections["run"] = {"steps": 2, "output_dir": str(tmp_path / name)}
        config = make_config(teacher={"address": server.address}, **sections)
        return train(TrainConfig.model_validate({**config.model_dump(), "weights": weights}))

    return made


def written(directory: Path) -> set[str]:
    """Keys of the run's metrics, of all its lines."""
    return {key for line in read_metrics(directory / "metrics.jsonl") for key in line}


def summarised(directory: Path) -> set[str]:
    return set(json.loads((directory / "summary.json").read_text()))


def named(*tables: tuple[Key, ...]) -> set[str]:
    return {key.name for keys in tables for key in keys}


def twice(*tables: tuple[Key, ...]) -> set[str]:
    return {f"{name}_{when}" for name in named(*tables) for when in ("before", "after")}


def test_runs_write_what_the_reference_explains(
    run: Callable[..., Path], foreign_student_dir: Path
) -> None:
    plain = run(
        "plain",
        loss={"kind": "entropy_switch", "row_clamp": 1.0},
        pipeline={"staleness": 1},
        evaluation=EVALUATION,
    )
    sampled = run(
        "sampled",
        loss={"kind": "sampled_token"},
        scoring={"max_scored_tokens": 8},
        weights=[{"kind": "place"}],
    )
    across = run(
        "across",
        model=foreign_student_dir,
        loss={"top_k": 48, "masked_chunks": True},
        evaluation=EVALUATION,
    )
    mixed = run(
        "mixed",
        rows=[{"prompt": text, "answer": "warm"} for text in TEXTS],
        data={"columns": {"response": "answer"}},
        mixing={"share": 0.5, "nll_weight": 0.1},
    )
    known = named(METRICS)
    of_answers = {n for n in written(mixed) - known if n.removeprefix("data_") in known - {"loss"}}
    assert "data_support_overlap" in of_answers
    found = written(plain) | written(sampled) | written(across) | (written(mixed) - of_answers)
    assert found == known
    assert summarised(plain) == named(SUMMARY) | twice(MEASURED)
    assert summarised(across) == named(SUMMARY) | twice(MEASURED, measured_across())


def test_every_key_is_explained_once_with_its_unit() -> None:
    tables = (
        METRICS,
        TASK_METRICS,
        REWARD_METRICS,
        TASK_MEASURED,
        (*SUMMARY, *MEASURED, *measured_across()),
    )
    for keys in tables:
        assert len(named(keys)) == len(keys)
        for key in keys:
            assert key.unit, key.name
            assert re.match("[A-Z`]", key.meaning), key.name
            assert key.meaning.endswith("."), key.name
