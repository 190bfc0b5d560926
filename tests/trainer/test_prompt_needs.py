"""What a run needs of its prompts is told before a model is loaded, alike by the run,
its dry run and the doctor."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.entrypoint import run_program

from student_trainer import cli
from student_trainer.evaluation import load_frozen
from student_trainer.prompt_needs import notes, read_prompts
from student_trainer.settings.train import TrainConfig
from tests.trainer.conftest import write_prompts
from tests.trainer.processes import Server, serve

README = (Path(__file__).parents[2] / "README.md").read_text()
MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), default=tiny_model_dir) as running:
        yield running


@pytest.fixture
def tokenizer_dir(student_model_dir: Path, tmp_path: Path) -> Path:
    """A student without a model: whatever loads one fails."""
    ignore = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(student_model_dir, tmp_path / "tokenizer", ignore=ignore))


def questions(directory: Path, count: int) -> Path:
    return write_prompts(directory / "prompts.jsonl", [f"What is {n}?" for n in range(count)])


def flags(**values: Any) -> list[str]:
    named = {key.replace("__", "."): value for key, value in values.items()}
    return [part for key, value in named.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def readme_run(
    student_model_dir: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The arguments of a run by the README's file, as small as a test needs; its data and
    its evaluation are as they stand."""
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r"^```toml\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    Path("run.toml").write_text(text)
    small = {"run__steps": 1, "data__max_prompt_tokens": 64, "rollout__max_new_tokens": 8}
    small |= {"rollout__group_size": 1, "optimizer__micro_batch_tokens": 512}
    where = {"student__model": student_model_dir, "teacher__address": server.address}
    return ["run.toml", *flags(**small, **where, student__device="cpu", report__html="false")]


@pytest.mark.parametrize("count", [33, 100])
def test_the_readmes_configuration_works_on_few_prompts(
    readme_run: list[str], tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    questions(tmp_path, count)
    held_out = round(0.02 * count)
    assert run_program(cli.run, ["train", *readme_run, "--dry-run"]) == 0
    assert f"{count - held_out} prompts to train on, {held_out} held out" in capsys.readouterr().out
    assert run_program(cli.run, ["train", *readme_run]) == 0
    summary = json.loads((tmp_path / "runs/first/summary.json").read_text())
    assert summary["held_out_prompts"] == held_out
    frozen = load_frozen(tmp_path / "runs/first/evaluation/frozen.json")
    assert 0 < frozen.rows == summary["frozen_rows"] <= 512


def test_every_command_tells_alike_what_cannot_be_met_before_a_model_is_loaded(
    readme_run: list[str], tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions(tmp_path, 100)
    wrong = flags(evaluation__prompts=32, student__model=tokenizer_dir)
    what = "it asks for 32 prompts and 2 are held out"
    for arguments in (["train"], ["train", "--dry-run"]):
        assert run_program(cli.run, [*arguments, *readme_run, *wrong]) == 2
        told = capsys.readouterr().err
        assert f"evaluation.prompts: {what}" in told
        assert "lower it to 2, unset it, or hold out more prompts" in told
        assert "with tasks their held_out or prompts_held_out" in told
    assert cli.main(["doctor", *readme_run, *wrong, "--json"]) == 2
    found = {f["check"]: f for f in json.loads(capsys.readouterr().out)["checks"]}
    assert what in found["data"]["detail"]


@pytest.mark.parametrize(
    ("count", "sections", "message"),
    [
        (1, {"data": {"held_out_fraction": 0.02}}, "0.02 of 1 prompts is none"),
        (1, {"data": {"held_out_fraction": 0.6}}, "is all of them, and none is left to train on"),
        (100, {"evaluation": {"prompts": 1}}, "it asks for 1 prompts and 0 are held out"),
        (
            100,
            {
                "data": {"held_out_fraction": 0.02},
                "evaluation": {"prompts": None, "frozen_rows": 512, "max_new_tokens": 31},
            },
            "512 positions are to be frozen, and 8 answers to each of 2 .* have at most 496",
        ),
    ],
)
def test_what_too_few_prompts_cannot_give_is_refused_with_both_numbers(
    make_config: MakeConfig,
    tokenizer_dir: Path,
    tmp_path: Path,
    count: int,
    sections: dict[str, Any],
    message: str,
) -> None:
    questions(tmp_path, count)
    with pytest.raises(ConfigurationError, match=message):
        read_prompts(make_config(tokenizer_dir, **sections))


def test_what_the_defaults_make_of_few_prompts_is_told(
    make_config: MakeConfig, tokenizer_dir: Path, tmp_path: Path
) -> None:
    def told(count: int, **sections: Any) -> list[str]:
        questions(tmp_path, count)
        config = make_config(tokenizer_dir, **sections)
        return notes(read_prompts(config), config)

    unset = {"evaluation": {"prompts": None}}
    assert told(100) == []
    (nothing,) = told(100, **unset)
    assert "so nothing is evaluated" in nothing
    (fewer,) = told(100, data={"held_out_fraction": 0.02}, **unset)
    assert "on all 2 held-out prompts, fewer than the usual 32" in fewer
    assert told(100, data={"held_out_fraction": 0.4}, **unset) == []
    (often,) = told(1)
    assert "a step takes 3 prompts (rollout.prompts_per_step) and there are 1" in often


def test_one_prompt_is_trained_on(
    make_config: MakeConfig, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from student_trainer.train import train

    questions(tmp_path, 1)
    config = make_config(
        run={"steps": 1}, teacher={"address": server.address}, evaluation={"prompts": None}
    )
    run = train(config)
    assert not (run / "evaluation").exists()
    (line,) = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert line["tokens_used"] > 0
