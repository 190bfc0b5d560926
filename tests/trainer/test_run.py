"""Whole runs against a real teacher server over gRPC."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.entrypoint import run_program
from teacher_proto.program.settings_show import to_toml
from transformers import AutoModelForCausalLM, AutoTokenizer

from student_trainer import loop as loop_module
from student_trainer.cli import run as run_cli
from student_trainer.data import load_prompts
from student_trainer.loop import TrainingLoop
from student_trainer.pipeline import Pipeline
from student_trainer.prompt_needs import read_prompts
from student_trainer.rollout.engine import make_engine
from student_trainer.rollout.generate import generate
from student_trainer.rollout.slots import supported
from student_trainer.run import checkpoint
from student_trainer.run.directory import RunDirectory
from student_trainer.run.retention import listing
from student_trainer.run.rng import restore_rng
from student_trainer.run.signals import Stopped
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.inputs import with_answers
from student_trainer.student import model as student_model
from student_trainer.student.model import Student, load_student
from student_trainer.teacher.link import TeacherLink
from student_trainer.teacher.teachers import Teachers
from student_trainer.train import train
from student_trainer.update.updater import Updater
from tests.trainer.conftest import write_prompts
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.processes import PATIENCE, Server, serve, steps, trainer

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model_dir: Path,
    other_tokenizer_model_dir: Path,
) -> Iterator[Server]:
    with serve(
        tmp_path_factory.mktemp("server"), default=tiny_model_dir, foreign=other_tokenizer_model_dir
    ) as running:
        yield running


@pytest.fixture
def config(make_config: MakeConfig, server: Server) -> MakeConfig:
    def make(**sections: dict[str, Any]) -> TrainConfig:
        teacher = {"address": server.address, **sections.pop("teacher", {})}
        every = {"every": 1, **sections.pop("checkpoint", {})}
        return make_config(teacher=teacher, checkpoint=every, **sections)

    return make


def artefacts(run: Path, step: int) -> dict[str, bytes]:
    """What two equal runs have equal, to the byte."""
    folder = run / "checkpoints" / f"step-{step:06d}"
    files = [*(folder / "model").glob("*.safetensors"), *folder.glob("*.safetensors")]
    files += (run / "model").glob("*.safetensors")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def in_directory(config: TrainConfig, path: Path, **run: Any) -> TrainConfig:
    changed = config.run.model_copy(update={"output_dir": path, **run})
    return config.model_copy(update={"run": changed})


KINDS = {
    "full": {},
    "bfloat16": {"student": {"dtype": "bfloat16"}},
    "lora": {"student": {"lora": {"rank": 2, "dropout": 0.2, "merge_final": False}}},
    "two updates, falling rate": {
        "optimizer": {"updates_per_batch": 2, "schedule": "linear", "warmup_steps": 1}
    },
    "sampled_token": {"loss": {"kind": "sampled_token"}},
    "sampled_token, stale": {"loss": {"kind": "sampled_token"}, "pipeline": {"staleness": 1}},
    "tail": {"loss": {"kind": "lsm", "tail": "bucket", "row_clamp": 20.0}},
    "student": {"loss": {"kind": "lsm", "support": "student"}},
    "union, tail": {"loss": {"kind": "topk_jsd", "support": "union", "tail": "bucket"}},
    "adaptive": {"loss": {"kind": "lsm", "support": "teacher+sampled", "support_mass": 0.8}},
    "returns": {"loss": {"kind": "sampled_token", "gamma": 0.5}},
    "forward, sampled": {"loss": {"kind": "topk_forward_kl", "support": "teacher+sampled"}},
    "stale": {"pipeline": {"staleness": 2}},
    "stale, two updates": {
        "pipeline": {"staleness": 1},
        "optimizer": {"updates_per_batch": 2},
        "loss": {"mean": "sequence"},
    },
    "jsd": {"loss": {"kind": "topk_jsd", "beta": 0.3}},
    "generalised, union": {"loss": {"kind": "generalised_reverse_kl", "support": "union"}},
    "entropy, tail": {"loss": {"kind": "entropy_switch", "tail": "bucket"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    config: MakeConfig, tmp_path: Path, kind: str
) -> None:
    # The third step begins the second epoch.
    settings = config(**KINDS[kind])
    straight = resumed_exactly(settings, tmp_path)
    assert [step for step, _ in losses(straight)] == [1, 2, 3]


def resumed_exactly(settings: TrainConfig, tmp_path: Path) -> Path:
    """The directory of a run of three steps, which one that was killed after two and resumed
    equals."""
    straight = train(in_directory(settings, tmp_path / "straight"))
    broken = tmp_path / "broken"
    interrupted_after(in_directory(settings, broken), 2)
    train(in_directory(settings, broken))
    assert losses(broken) == losses(straight)
    assert artefacts(broken, 3) == artefacts(straight, 3)
    return straight


def interrupted_after(config: TrainConfig, count: int) -> None:
    """Leaves what a run killed after ``count`` steps leaves."""
    torch.manual_seed(config.run.seed)
    student = load_student(config.student)
    prompts = read_prompts(config)
    if config.mixing.mixes:
        prompts, _ = with_answers(prompts, config, student)
    run = RunDirectory(config.run.output_dir)
    run.path.mkdir()
    with Teachers.connect(config, student) as teachers:
        loop = TrainingLoop(
            config, student, make_engine(student, config.rollout), teachers, prompts, run
        )
        restore_rng(loop._rng, student.device)
        for _ in range(count):
            line = loop.step()
            with run.metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")
        loop.save()


def test_an_update_begins_and_ends_with_no_free_page_in_the_heaps(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noted(owner: Any, name: str) -> None:
        own = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            found = own(*args, **kwargs)
            done.append(name)
            return found

        monkeypatch.setattr(owner, name, call)

    noted(Pipeline, "fill")
    noted(Updater, "update")
    noted(loop_module, "give_back_free_pages")
    settings = config(optimizer={"updates_per_batch": 2})
    interrupted_after(in_directory(settings, tmp_path / "run"), 1)
    given = "give_back_free_pages"
    assert done == ["fill", given, "update", "update", given]


def test_a_run_that_is_told_to_end_goes_on_where_it_was(config: MakeConfig, tmp_path: Path) -> None:
    settings = config(checkpoint={"every": 50})
    ended = in_directory(settings, tmp_path / "ended", steps=12)
    file = tmp_path / "config.toml"
    file.write_text(to_toml(ended))
    with trainer(file) as process:
        steps(process, 2)
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE)
    found = checkpoint.newest_good(ended.run.output_dir / "checkpoints")
    assert found is not None
    at = checkpoint.load_state(found).step
    recorded = [step for step, _ in losses(ended.run.output_dir)]
    assert code == 143
    assert at == recorded[-1] >= 2, "no step is redone"
    assert at < 12, "the signal came too late to matter"
    target = at + 1
    train(in_directory(ended, ended.run.output_dir, steps=target))
    straight = train(in_directory(ended, tmp_path / "straight", steps=target))
    assert losses(ended.run.output_dir) == losses(straight)
    assert artefacts(ended.run.output_dir, target) == artefacts(straight, target)


def test_a_signal_after_the_last_step_ends_the_run_before_what_follows(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look for a signal and the end of the steps, while evaluations get no better
    and the last step is saved."""
    settings = in_directory(config(checkpoint={"every": 50}), tmp_path / "run", steps=3)
    monkeypatch.setattr(TrainingLoop, "_stops_early", lambda loop: loop.state.step == 2)
    told = TrainingLoop._tell_saved

    def tell_saved(loop: TrainingLoop, saved: Path | None) -> None:
        told(loop, saved)
        if saved is not None:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(TrainingLoop, "_tell_saved", tell_saved)
    with pytest.raises(Stopped) as caught:
        train(settings)
    assert caught.value.code == 143
    run = settings.run.output_dir
    (saved,) = listing(run / "checkpoints")
    assert checkpoint.load_state(saved).step == 2
    assert not (run / "model").exists()


def test_a_student_that_reads_or_writes_otherwise_than_before_is_refused(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with other versions, or on another device."""
    path = train(config(run={"steps": 1}, checkpoint={"every": 1}))
    state = checkpoint.load_state(path / "checkpoints" / "step-000001")
    assert (state.packs, state.continuous) == (True, True)
    now = config(run={"steps": 2})
    with monkeypatch.context() as changed:
        changed.setattr(student_model, "_probe_packing", lambda student: False)
        with pytest.raises(ConfigurationError, match=r"padded, and so far packed(.|\n)*\.packing"):
            train(now)
    monkeypatch.setattr(supported, "_tried", lambda student: "it cannot")
    with pytest.raises(ConfigurationError, match=r"so far continuously(.|\n)*rollout\.engine"):
        train(now)
    allowed = {"every": 1, "allow_changed": ("rollout.engine",)}
    train(config(run={"steps": 2}, checkpoint=allowed))
    assert checkpoint.load_state(path / "checkpoints" / "step-000002").continuous is False


def test_the_final_model_is_one_transformers_loads(config: MakeConfig, tmp_path: Path) -> None:
    lora = config(student={"lora": {"rank": 2}}, run={"steps": 1}, optimizer={"lr": 0.05})
    run = train(lora)
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    ids = tokenizer("The teacher reads", return_tensors="pt")["input_ids"]
    adapted = load_student(lora.student, run / "checkpoints" / "step-000001" / "model")
    with torch.no_grad():
        merged = model(ids).logits
        torch.testing.assert_close(merged, adapted.module(ids).logits, rtol=1e-4, atol=1e-4)
        base = load_student(lora.student.model_copy(update={"lora": None})).module(ids).logits
    assert float((merged - base).abs().max()) > 1e-2, "training changed it"


def test_a_run_is_evaluated_and_reported(config: MakeConfig, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [f"What is {n}?" for n in range(12)])
    settings = config(
        run={"steps": 8},
        data={"held_out_fraction": 0.5},
        evaluation={"prompts": 6, "frozen_rows": 256, "max_new_tokens": 60, "samples": 2},
        optimizer={"lr": 3e-3},
    )
    run = train(settings)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["reverse_kl_after"] < summary["reverse_kl_before"]
    assert summary["steps"] == 8
    assert {path.name for path in run.iterdir()} >= {
        "checkpoints", "config.toml", "evaluation", "metrics.jsonl", "model", "samples.json",
    }  # fmt: skip
    assert sorted(path.name for path in (run / "evaluation").iterdir()) == [
        "after.json", "before.json", "frozen.json",
    ]  # fmt: skip
    frozen = (run / "evaluation" / "frozen.json").read_bytes()
    before = (run / "evaluation" / "before.json").read_bytes()
    train(settings.model_copy(update={"run": settings.run.model_copy(update={"steps": 9})}))
    assert (run / "evaluation" / "frozen.json").read_bytes() == frozen
    assert (run / "evaluation" / "before.json").read_bytes() == before
    assert json.loads((run / "summary.json").read_text())["steps"] == 9


def test_a_resumed_run_with_other_held_out_prompts_ends_before_its_first_step(
    config: MakeConfig, tmp_path: Path
) -> None:
    held_out = write_prompts(tmp_path / "held_out.jsonl", ["What is 1?", "What is 2?"])
    settings = config(
        run={"steps": 1},
        data={"held_out": str(held_out)},
        evaluation={"prompts": 2, "frozen_rows": 0, "max_new_tokens": 4},
    )
    run = train(settings)
    write_prompts(held_out, ["What is 1?", "What is 3?"])
    with pytest.raises(ConfigurationError, match="not those of the frozen evaluation"):
        train(in_directory(settings, run, steps=2))
    assert [step for step, _ in losses(run)] == [1]


def test_the_service_and_a_plain_forward_give_one_loss(
    config: MakeConfig, tiny_model_dir: Path, student: Student
) -> None:
    settings = config()
    local = LocalTeacher(tiny_model_dir)
    prompts = load_prompts(settings.data, student.tokenizer).train[:1]
    group = generate(student, prompts, settings.rollout, seed=0, step=1)
    with TeacherLink(settings.named_teachers["default"], student, run="test") as link:
        scores = link.submit_rollouts(group, 16, 0.7).result()
        rows = np.array([0, 3, 4, 9], np.int32)
        few = link.limits.__class__(**{**vars(link.limits), "max_reply_bytes": 4096 + 2 * 2600})
        object.__setattr__(link, "limits", few)
        whole = link.score_rows(prompts[0], group[0].token_ids, rows, 320, 0.7)
    for rollout, score, plain in zip(group, scores, local.score(group, 16, 0.7), strict=True):
        assert len(score.rows.support.log_probs) == len(rollout.token_ids)
        np.testing.assert_allclose(
            score.rows.support.log_probs, plain.rows.support.log_probs, atol=1e-4
        )
        np.testing.assert_allclose(score.rows.sampled.values, plain.rows.sampled.values, atol=1e-4)
    expected = local.log_probs(group[0], 0.7)[torch.from_numpy(rows.astype(np.int64))]
    assert whole.rows.support.ids.shape == (4, 320)
    values = np.take_along_axis(expected.numpy(), whole.rows.support.ids.astype(np.int64), 1)
    np.testing.assert_allclose(whole.rows.support.log_probs, values, atol=1e-4)


def main(config: TrainConfig, tmp_path: Path) -> int:
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config))
    return run_program(run_cli, ["train", str(file)])


def test_an_unknown_teacher_and_a_wrong_setting_end_with_2(
    config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(config(teacher={"name": "absent"}), tmp_path) == 2
    assert "['default', 'foreign']" in capsys.readouterr().err
    assert main(config(rollout={"max_new_tokens": 460}, optimizer={"micro_batch_tokens": 999}),
                tmp_path) == 2  # fmt: skip
    assert "512 positions" in capsys.readouterr().err


def test_no_teacher_ends_with_4(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    with socket.socket() as taken:
        # Bound and not listening: nobody else takes the port, and nobody answers.
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        teacher = {"address": address, "connect_timeout_seconds": 0.5}
        assert main(make_config(teacher=teacher), tmp_path) == 4
    assert address in capsys.readouterr().err


def test_a_dry_run_tells_every_origin(
    config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("LSM_TRAINER__ROLLOUT__TOP_P", "0.8")
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config()))
    assert run_program(run_cli, ["train", str(file), "--set", "run.steps=7", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "run.steps = 7 (flag --set)" in lines
    assert "rollout.top_p = 0.8 (env LSM_TRAINER__ROLLOUT__TOP_P)" in lines
    assert any(line.startswith("optimizer.eps = ") and "(file" in line for line in lines)
    assert lines[-1] == "# tokenizers: the student's is the teacher's"
    assert not (tmp_path / "run").exists()
    wrong = ["train", str(file), "--set", "rollout.topp=1"]
    assert run_program(run_cli, wrong) == 2
    assert "top_p" in capsys.readouterr().err


def test_a_run_on_weighted_files_is_resumed_exactly(config: MakeConfig, tmp_path: Path) -> None:
    asked = [{"question": text, "answer": "4"} for text in ("2 + 2?", "3 + 1?", "1 + 3?", "4?")]
    lines, listed = tmp_path / "a.jsonl", tmp_path / "b.json"
    lines.write_text("\ufeff" + "".join(json.dumps(row) + "\r\n" for row in asked))
    listed.write_text(json.dumps([{"question": "The capital?"}, {"question": "The sun?"}]))
    files = [{"file": str(lines), "weight": 1}, {"file": str(listed), "weight": 2}]
    data = {"train": files, "columns": {"user": "question"}, "system": "Answer."}
    run = resumed_exactly(config(data=data), tmp_path)
    card = (run / "model" / "README.md").read_text()
    assert "a.jsonl, b.json" in card


@pytest.mark.parametrize("teacher", ["default", "foreign"])
def test_a_run_on_rows_with_calls_of_tools(
    config: MakeConfig, tmp_path: Path, teacher: str
) -> None:
    call = {"type": "function", "function": {"name": "sun", "arguments": '{"at": "noon"}'}}
    user = {"role": "user", "content": [{"type": "text", "text": "Is it warm?"}]}
    rows = [
        {"messages": [user, {"role": "assistant", **content, "tool_calls": [call]}, result, user]}
        for content in ({}, {"content": None}, {"content": ""})
        for result in ({"role": "tool", "content": "yes"},)
    ]
    path = tmp_path / "tools.jsonl"
    path.write_text("".join(json.dumps({**row, "tools": None}) + "\n" for row in rows))
    data = {"train": str(path), "columns": {"tools": "tools"}}
    settings = config(data=data, run={"steps": 1}, teacher={"name": teacher})
    assert len(losses(train(settings))) == 1
