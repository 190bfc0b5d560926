"""The comparison study: what is planned, how rates are chosen, the figures, and a whole command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import ConfigurationError
from teacher_proto.rows import Rows, Values, required
from teacher_proto.types import ContinuationScores

from student_trainer.cli import run as run_cli
from student_trainer.settings.train import TrainConfig
from student_trainer.study.compare import plan
from student_trainer.study.compare.choose import chosen_rates
from student_trainer.study.compare.execute import reason_of
from student_trainer.study.compare.measured import figures, record, signal_share
from student_trainer.study.compare.noise import MeasuredUpdater
from student_trainer.study.compare.report import table
from student_trainer.study.compare.results import difference, results, run_of
from student_trainer.study.compare.settings import CompareSettings, merged, read_settings
from student_trainer.study.compare.store import Store
from student_trainer.study.lab import measuring
from student_trainer.study.lab.language.sums import SumsTask
from student_trainer.study.lab.language.tokenizer import make_tokenizer
from student_trainer.study.lab.network import Sizes, make_network, save
from student_trainer.update.metrics import UpdateTotals
from student_trainer.update.updater import Updater

CONFIGS = Path(__file__).parents[2] / "docs" / "study" / "compare"
SMALL = Sizes(layers=1, hidden=32, inner=64, heads=2, positions=256)
SUMS = SumsTask(items=2)

TEXT = """
name = "small"
reference = "lsm"
values = ["pass_at_1/sums", "reverse_kl", "noise", "teacher_tokens"]
[models]
teacher = "teacher"
students = ["one", "two"]
[grid]
rates = [1e-3, 1e-2]
seeds = [11]
value = "pass_at_1/sums"
goal = "max"
changes.run.steps = 1
changes.evaluation.every = 1
[noise]
every = 2
parts = 2
[base]
run.steps = 2
student = { dtype = "float32", device = "cpu" }
data.max_prompt_tokens = 8
rollout = { prompts_per_step = 4, group_size = 1, max_new_tokens = 24, batch_size = 4 }
optimizer.micro_batch_tokens = 64
evaluation = { every = 1, prompts = 4, max_new_tokens = 24, task_prompts = 4 }
verification.training = false
report = { html = false, rollouts_every = 0 }
[base.tasks.sums]
kind = "student_trainer.study.lab.language.sums:SumsTask"
items = 2
count = 40
held_out = 8
[arms.lsm]
about = "on eight ids"
seeds = [1, 2]
changes.loss = { kind = "lsm", top_k = 8 }
[arms.first]
about = "the first tokens, top-p 1"
seeds = [1]
changes.loss = { kind = "lsm", top_k = 8 }
changes.rollout.top_p = 1.0
changes.scoring.scored_share = 0.3
"""


def small(folder: Path, text: str = TEXT) -> CompareSettings:
    file = folder / "small.toml"
    file.write_text(text)
    return read_settings(file)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.toml")), ids=lambda file: file.stem)
def test_the_committed_comparisons_can_be_read(file: Path) -> None:
    settings = read_settings(file)
    assert settings.name == file.stem
    grid, counted = plan.grid_runs(settings), plan.counted_runs(settings, _rates(settings))
    names = [one.name for one in (*grid, *counted)]
    assert len(set(names)) == len(names)
    assert not {one.seed for one in grid} & {one.seed for one in counted}


def test_the_arms_of_the_first_comparison_are_those_that_it_says() -> None:
    settings = read_settings(CONFIGS / "sums.toml")
    runs = plan.counted_runs(settings, _rates(settings))
    assert len(runs) == 5 * 5 + 13 * 3
    lsm = _loss(settings, "lsm")
    assert lsm == {"kind": "lsm", "top_k": 32}
    of_losses = {name: _loss(settings, name) for name in settings.arms}
    assert {of_losses[name]["top_k"] for name in ("k-2", "k-8", "k-128")} == {2, 8, 128}
    assert {name: loss for name, loss in of_losses.items() if loss == lsm}.keys() == {
        "lsm", "top-p-1", "top-p-0.8", "first-30-percent",
    }  # fmt: skip


def _loss(settings: CompareSettings, arm: str) -> dict[str, Any]:
    loss: dict[str, Any] = settings.arms[arm].changes["loss"]
    return loss


def _rates(settings: CompareSettings) -> dict[str, float]:
    return dict.fromkeys(settings.arms, settings.grid.rates[0])


def test_arms_have_as_many_runs_as_each_other_wherever_it_stops(tmp_path: Path) -> None:
    settings = small(tmp_path)
    runs = plan.counted_runs(settings, {"lsm": 1e-3, "first": 1e-2})
    assert [(one.arm, one.seed, one.rate, one.model) for one in runs] == [
        ("lsm", 1, 1e-3, "one"),
        ("first", 1, 1e-2, "one"),
        ("lsm", 2, 1e-3, "two"),
    ]
    grid = plan.grid_runs(settings)
    assert [(one.arm, one.rate) for one in grid] == [
        ("lsm", 1e-3), ("lsm", 1e-2), ("first", 1e-3), ("first", 1e-2),
    ]  # fmt: skip
    assert {one.model for one in grid} == {"one"}


def test_a_run_has_the_settings_of_its_arm(tmp_path: Path) -> None:
    settings = small(tmp_path)
    counted = plan.counted_runs(settings, {"lsm": 1e-3, "first": 1e-2})
    first = plan.config_of_run(settings, counted[1], Path("models"), tmp_path, "127.0.0.1:1")
    assert first.optimizer.lr == 1e-2
    assert first.rollout.top_p == 1
    assert first.rollout.prompts_per_step == 4
    assert first.scoring.scored_share == 0.3
    assert (first.run.seed, first.run.steps, first.student.model) == (1, 2, "models/one")
    tried = plan.config_of_run(settings, plan.grid_runs(settings)[0], Path(), tmp_path, "a:1")
    assert (tried.run.seed, tried.run.steps) == (11, 1)


def test_tables_merge_and_everything_else_is_replaced() -> None:
    values = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merged(values, {"a": {"c": [4]}, "e": {"f": 5}}) == {
        "a": {"b": 1, "c": [4]}, "d": 3, "e": {"f": 5},
    }  # fmt: skip
    assert values == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('reference = "lsm"', 'reference = "other"', "none of the arms"),
        ("seeds = [11]", "seeds = [2]", r"seeds \[2\] are counted and in the grid"),
        ("parts = 2", "parts = 3", "cannot be split into 3"),
        ("scoring.scored_share = 0.3", "scoring.share = 0.3", "arms.first"),
        ("goal =", "aim =", "aim"),
        ("rates = [1e-3, 1e-2]", "rates = [1e-3, 1e-3]", "grid.rates holds a value twice"),
        ("seeds = [1, 2]", "seeds = [1, 1]", "arms.lsm.seeds holds a value twice"),
        ("scoring.scored_share = 0.3", "run.steps = 3", "has run, which all arms share"),
        ("scoring.scored_share = 0.3", "optimizer.lr = 0.1", "has optimizer.lr, which each run"),
        ("scoring.scored_share = 0.3", "rollout.group_size = 2", "have 8 responses, and .* 4"),
        ("changes.run.steps = 1", "changes.run.seed = 1", "grid.changes has run.seed"),
        ("changes.evaluation.every = 1", "changes.evaluation.every = 0", "after its last step"),
        (
            "changes.run.steps = 1",
            "changes.rollout = { top_p = 0.9, batch_size = 8 }",
            "grid.changes has rollout.top_p, and so has arms.first.changes",
        ),
        ('reference = "lsm"', 'reference = "lsm"\npairs = [["lsm", "x"]]', "'x' is none of"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in TEXT
    with pytest.raises(ConfigurationError, match=words):
        small(tmp_path, TEXT.replace(old, new))


def tried(arm: str, rate: float, accuracy: float, kl: float = 1.0, **more: Any) -> dict[str, Any]:
    end = {"step": 1, "pass_at_1/sums": accuracy, "reverse_kl": kl}
    return {"run": {"arm": arm, "rate": rate}, "course": [end], **more}


def test_the_best_rate_is_chosen_and_ties_by_reverse_kl(tmp_path: Path) -> None:
    settings = small(tmp_path)
    first = [tried("first", 1e-3, 0.2), tried("first", 1e-2, 0.3)]
    lsm = [tried("lsm", 1e-3, 0.5, 0.2), tried("lsm", 1e-2, 0.5, 0.1)]

    def rates(records: list[dict[str, Any]]) -> dict[str, float]:
        return {arm: one["rate"] for arm, one in chosen_rates(settings, records).items()}

    assert rates([*first, *lsm]) == {"lsm": 1e-2, "first": 1e-2}
    lsm[0]["course"][0]["reverse_kl"] = 0.05
    assert rates([*first, *lsm]) == {"lsm": 1e-3, "first": 1e-2}
    assert rates([*first, lsm[0]]) == {"first": 1e-2}, "the grid of lsm is not complete"
    failed = {"run": lsm[0]["run"], "failed": "not finite", "reason": "NON_FINITE"}
    assert rates([failed, lsm[1]]) == {"lsm": 1e-2}
    assert rates([{**failed, "reason": "TEACHER_UNAVAILABLE"}, lsm[1]]) == {}
    lsm[0]["course"][0].pop("pass_at_1/sums")
    with pytest.raises(ConfigurationError, match="name one of reverse_kl"):
        rates(lsm)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_a_failure_of_the_rate(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="Out of range") as refused:
        Store(tmp_path).write({"run": {"name": "x"}, "course": [{"reverse_kl": value}]})
    assert reason_of(refused.value) == "NON_FINITE"
    assert reason_of(ValueError("of another kind")) == ""
    assert reason_of(ConfigurationError("a setting")) == "CONFIGURATION"


def line(**more: Any) -> dict[str, Any]:
    return {"tokens": 10, "step_seconds": 0.5, "loss": 1.0, **more}


def test_figures_of_a_run_are_of_its_end_its_steps_and_its_last_quarter() -> None:
    lines = [line(grad_norm=float(n), student_entropy=n / 10) for n in range(1, 9)]
    lines[0] |= {"teacher_tokens_saved": 7, "step_seconds": 9.0}
    ratios = ([-2.0], [-1.0, None, None, 2.0])
    for one, ratio, count in zip(lines, ratios, ([1, 0, 0, 0], [3, 0, 0, 1]), strict=False):
        one |= {"log_ratio_by_position": ratio, "signal_tokens_by_position": count}
    noise = [
        {"step": 1, "parts": 8, "noise": 4.0, "norm": 1.0},
        {"step": 2, "parts": 8, "noise": 9.0, "norm": 1.0},
    ]
    course = [{"step": 0, "reverse_kl": 0.5}, {"step": 8, "reverse_kl": 0.123456789}]
    made = record({"name": "x"}, course, lines, noise, {"seconds": 3.0})
    assert json.loads(json.dumps(made)) == made
    found = figures(made)
    assert found["reverse_kl"] == 0.123457
    assert found["grad_norm"] == 4.5
    assert found["late_student_entropy"] == pytest.approx(0.75)
    assert found["noise"] == pytest.approx(6)
    assert (found["teacher_tokens"], found["student_tokens"]) == (80, 87)
    assert found["training_seconds"] == pytest.approx(8 * 0.5), "without those of the noise"
    assert made["by_position"]["early"] == [
        {"places": "0", "tokens": 4, "log_ratio": -1.25},
        {"places": "4-7", "tokens": 1, "log_ratio": 2.0},
    ]
    assert "late_ratio_clipped" not in found
    assert "step" not in found


def test_the_share_of_signal_is_that_of_gradients_without_their_noise() -> None:
    draw = np.random.default_rng(3)
    mean = draw.normal(size=50)
    spread = 4.0

    def measured(mean: np.ndarray) -> dict[str, Any]:
        parts = mean + spread * draw.normal(size=(8, 50))
        g = parts.mean(0)
        square = float((g**2).sum())
        noise = float(((parts - g) ** 2).sum()) / square
        return {"step": 1, "parts": 8, "noise": noise, "norm": math.sqrt(square)}

    found = signal_share([measured(mean) for _ in range(400)])
    signal, of_noise = float((mean**2).sum()), spread**2 * 50 / 8
    assert found == pytest.approx(signal / (signal + of_noise), abs=0.03)
    assert signal_share([measured(0 * mean) for _ in range(400)]) == pytest.approx(0, abs=0.03)
    assert signal_share([]) is None


def test_differences_are_paired_by_seed_with_students_interval() -> None:
    found = difference({1: 0.9, 2: 0.7, 3: 0.5}, {1: 0.8, 2: 0.5, 4: 0.1})
    assert found["of_seeds"] == {"1": 0.1, "2": 0.2}
    # Two seeds: t = 12.7062, and the standard error of .1 and .2 is .05.
    assert found["mean"] == pytest.approx(0.15)
    assert found["low"] == pytest.approx(0.15 - 12.7062 * 0.05, abs=1e-4)
    assert found["high"] == pytest.approx(0.15 + 12.7062 * 0.05, abs=1e-4)
    assert difference({1: 0.5}, {1: 0.5}) == {
        "mean": 0.0, "low": None, "high": None, "of_seeds": {"1": 0.0},
    }  # fmt: skip


def test_the_gap_that_is_recovered_is_between_the_student_before_and_the_teacher(
    tmp_path: Path,
) -> None:
    course = [{"step": 0, "pass_at_1/sums": 0.2}, {"step": 2, "pass_at_1/sums": 0.5}]
    run = {"name": "x", "arm": "lsm", "seed": 1, "model": "one", "rate": 1e-3}
    made = record(run, course, [line()], [], {})
    settings = small(tmp_path)
    assert run_of(settings, made, 0.8)["figures"]["recovered"] == pytest.approx(0.5)
    for teacher in (None, 0.1):
        assert "recovered" not in run_of(settings, made, teacher)["figures"]


def test_settings_change_until_a_run_is_counted_and_keep_what_they_do_not_concern(
    tmp_path: Path,
) -> None:
    settings, store = small(tmp_path), Store(tmp_path / "out")
    store.begin(settings, {})
    grid = plan.grid_runs(settings)
    for one in grid:
        store.write({"run": one.described()})
    store.write_chosen({"lsm": {"rate": 1e-3}})
    more = small(tmp_path, TEXT.replace("rates = [1e-3, 1e-2]", "rates = [1e-4, 1e-3, 1e-2]"))
    store.begin(more, {})
    assert all(store.has(one) for one in grid)
    assert not all(store.has(one) for one in plan.grid_runs(more))
    assert store.chosen() == {}
    store.write_failure(plan.grid_runs(more)[0], "the gradient is not finite", "NON_FINITE")
    (failed,) = store.records(plan.grid_runs(more)[:1])
    assert (failed["failed"], failed["reason"]) == ("the gradient is not finite", "NON_FINITE")
    (store.path / "runs" / f"{plan.grid_runs(more)[0].name}.failed").write_text("as it was told\n")
    (failed,) = store.records(plan.grid_runs(more)[:1])
    assert (failed["failed"], failed["reason"]) == ("as it was told\n", "")
    text = TEXT.replace("scored_share = 0.3", "scored_share = 0.4")
    other = small(tmp_path, text)
    store.write_failure(plan.counted_runs(more, _rates(more))[0], "the teacher had ended")
    store.begin(other, {})
    assert not list(store.path.glob("runs/counted-*"))
    assert {one.arm for one in grid if store.has(one)} == {"lsm"}
    assert json.loads((store.path / "compare.json").read_text())["earlier"] == [
        settings.digest, more.digest,
    ]  # fmt: skip
    evaluated = small(
        tmp_path, text.replace("max_new_tokens = 24, batch", "max_new_tokens = 23, batch")
    )
    store.begin(evaluated, {})
    assert not any(store.has(one) for one in grid)
    store.write({"run": plan.counted_runs(evaluated, _rates(evaluated))[0].described()})
    with pytest.raises(ConfigurationError, match="must not be mixed"):
        store.begin(other, {})


def test_runs_of_other_models_under_the_same_names_are_refused(tmp_path: Path) -> None:
    settings = small(tmp_path)
    facts = {"teacher_identity": "a", "weights_sha256": "b", "commit": "c", "seconds": 1.0}
    runs = plan.counted_runs(settings, _rates(settings))
    course = [{"step": 2, "pass_at_1/sums": 0.5}]
    records = [record(one.described(), course, [line()], [], facts) for one in runs]

    def table_of(counted: list[dict[str, Any]]) -> str:
        return table(results(settings, [], [], counted, {}, {}))

    text = table_of(records)
    assert "3 of 3 counted runs" in text
    assert "No run has reverse_kl, noise" in text
    assert "| first | 1 | +0 | +0 |" in text
    for key, what in (("teacher_identity", "the teacher"), ("weights_sha256", "the student one")):
        with pytest.raises(ConfigurationError, match=what):
            table_of([{**records[0], key: "other"}, *records[1:]])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks that know nothing: a teacher and two students."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), make_tokenizer(SUMS.numbers)
    for seed, name in enumerate(("teacher", "one", "two")):
        save(make_network(SMALL, tokenizer, seed), tokenizer, folder / name)
    return folder


def test_the_noise_is_that_of_the_parts_gradients(models: Path, tmp_path: Path) -> None:
    student = measuring.load(models / "one")
    rows = measuring.draw_rows(SUMS, 8, seed=1)
    rollouts = measuring.respond(student, SUMS, rows, seed=1)
    draw = np.random.default_rng(1)
    scores = [
        ContinuationScores(
            rows=Rows(
                sampled=Values(
                    draw.normal(-6, 1, len(r.token_ids)).astype(np.float32),
                    np.ones(len(r.token_ids), np.bool_),
                )
            )
        )
        for r in rollouts
    ]
    values = {
        "run": {"output_dir": str(tmp_path)},
        "student": {"model": str(models / "one"), "device": "cpu"},
        "data": {"train": "unset.jsonl", "max_prompt_tokens": 8},
        "rollout": {"max_new_tokens": 64},
        "loss": {"kind": "sampled_token", "top_k": 0, "nucleus_weights": False},
        "optimizer": {"micro_batch_tokens": 128},
    }
    config = TrainConfig.model_validate(values)
    updater = MeasuredUpdater(student, config, every=5, parts=4)
    told: list[int] = []
    updater.tell = lambda losses: told.append(1)
    norm = updater.gradients(rollouts, scores.__getitem__, UpdateTotals(), 1)
    passes = len(told)
    plain = Updater(measuring.load(models / "one"), config)
    plain.tell = updater.tell
    assert norm == plain.gradients(rollouts, scores.__getitem__, UpdateTotals(), 1)
    assert len(told) == 2 * passes, "what is measured tells nothing to the run"
    updater.gradients(rollouts, scores.__getitem__, UpdateTotals(), 4)
    (found,) = updater.noise

    # The definition, in float64: the gradient of the mean of -A log pi(y) over a part's tokens.
    network = measuring.load(models / "one").causal_model.double()
    parts = []
    for part in range(4):
        terms = []
        for at in (2 * part, 2 * part + 1):
            prompt, ids = rollouts[at].prompt.token_ids, rollouts[at].token_ids
            whole = torch.from_numpy(np.concatenate([prompt, ids]).astype(np.int64))
            logits = network(input_ids=whole[None]).logits[0, len(prompt) - 1 : -1]
            own = logits.log_softmax(-1).gather(-1, whole[len(prompt) :, None])[:, 0]
            teacher = torch.from_numpy(required(scores[at].rows.sampled, "sampled").values).double()
            terms.append(-(teacher - own.detach()) * own)
        own_gradient = torch.autograd.grad(torch.cat(terms).mean(), [*network.parameters()])
        parts.append(torch.cat([one.flatten() for one in own_gradient]))
    stack = torch.stack(parts)
    mean = stack.mean(0)
    expected = float(((stack - mean) ** 2).sum() / (mean**2).sum())
    assert (found.step, found.parts) == (1, 4)
    assert found.noise == pytest.approx(expected, rel=1e-3)
    assert found.norm == pytest.approx(float(mean.norm()), rel=1e-3)


def test_a_whole_comparison_and_what_it_keeps(models: Path, tmp_path: Path) -> None:
    text = TEXT.replace("rates = [1e-3, 1e-2]", "rates = [1e-3]")
    small(tmp_path, text)
    out = tmp_path / "out"
    command = ["study", "compare", str(tmp_path / "small.toml"), "--models", str(models)]
    command += ["--out", str(out), "--jobs", "2"]
    with pytest.raises(ConfigurationError, match="choose the learning rates are not complete"):
        run_cli([*command, "--only", "counted"])
    assert run_cli(command) == 0
    document = json.loads((out / "small.json").read_text())
    chosen = json.loads((out / "chosen.json").read_text())
    assert {arm: len(one["tried"]) for arm, one in chosen.items()} == {"lsm": 1, "first": 1}
    assert document["arms"]["lsm"]["seeds"] == [1, 2]
    lsm = document["arms"]["lsm"]["values"]
    assert lsm.keys() >= {"reverse_kl", "fresh_forward_kl", "agreement", "pass_at_4/sums"}
    assert lsm["noise"]["mean"] > 0
    first = document["arms"]["first"]
    assert first["differences"]["teacher_tokens"]["mean"] < 0
    runs = {one["name"]: one for one in document["runs"]}
    starts = [runs[f"counted-{arm}-seed-1"]["course"][0] for arm in ("lsm", "first")]
    assert starts[0] == starts[1], "whatever an arm draws, it is evaluated as the others"
    assert [one["step"] for one in runs["counted-lsm-seed-2"]["course"]] == [0, 1, 2]
    assert not list((out / "work").glob("counted-*/"))

    # A broken run is made again, and gives the same; what is finished stays.
    broken, kept = (out / "runs" / f"counted-lsm-seed-{seed}.json" for seed in (1, 2))
    before, stamp = json.loads(broken.read_text()), kept.stat().st_mtime_ns
    broken.unlink()
    assert run_cli(command) == 0
    again = json.loads(broken.read_text())
    assert again["course"] == before["course"]
    assert len(again["steps"].pop("step_seconds")) == len(before["steps"].pop("step_seconds")) == 2
    assert again["steps"] == before["steps"]
    assert kept.stat().st_mtime_ns == stamp

    (tmp_path / "small.toml").write_text(text.replace("top_k = 8", "top_k = 9"))
    with pytest.raises(ConfigurationError, match="must not be mixed"):
        run_cli([*command, "--report"])
