"""The models of the laboratory: their tokenizer, training from seeds, and what loads them."""

from __future__ import annotations

import argparse
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from teacher_proto.errors import ConfigurationError, LsmError
from transformers import AutoModelForCausalLM, AutoTokenizer

from student_trainer.cli import run as run_cli
from student_trainer.quickstart.cache import MANIFEST
from student_trainer.study.lab import command, measuring, recipe
from student_trainer.study.lab.document import describe, link_models, write_prompts
from student_trainer.study.lab.language.sums import SumsTask
from student_trainer.study.lab.language.tokenizer import WordIds, make_tokenizer
from student_trainer.study.lab.language.words import ITEMS, SLOT_OF
from student_trainer.study.lab.making import (
    folder_of,
    kept,
    make,
    missed,
    refusal_of,
    refuse_below_bars,
)
from student_trainer.study.lab.network import Sizes, make_network
from student_trainer.study.lab.together import make_together
from student_trainer.study.lab.training import Schedule, batch, loss_of, train
from tests.engines.conformance import running

SMALL = Sizes(layers=2, hidden=32, inner=64, heads=2, positions=512)
SHORT = Schedule(steps=60, items=(1, 2), warmup=5, tokens=256, rate=1e-2)
SUMS = SumsTask(items=4)


def test_every_word_and_number_is_one_token() -> None:
    tokenizer = make_tokenizer(SUMS.numbers)
    assert len(tokenizer) >= 1000

    def pieces(text: str) -> list[str]:
        return [tokenizer.decode([one]) for one in tokenizer.encode(text, add_special_tokens=False)]

    for word in (*SLOT_OF, *ITEMS, "answer", "=", "0", "19"):
        assert pieces(f" {word}") == [f" {word}"]
    for strange in ("Größe 12345 \n\t<|end|", "l'apple", "S3 up 100 =", "banobano"):
        ids = tokenizer.encode(strange, add_special_tokens=False)
        assert tokenizer.decode(ids) == strange


def test_ids_word_by_word_are_those_of_the_text() -> None:
    tokenizer = make_tokenizer(SUMS.numbers)
    ids, draw = WordIds(tokenizer), random.Random(1)
    for _ in range(20):
        row = SUMS.draw_row(draw, 4)
        response = SUMS.write(row, draw, decided=1.0, slip=0.0)
        text = " ".join([row["prompt"], *response.words])
        assert ids.of_text(text) == tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids.of_text(text)) == text


def test_rows_of_a_step_are_of_the_seed_and_the_step() -> None:
    ids = WordIds(make_tokenizer(SUMS.numbers))
    schedule = replace(SHORT, slip=1.0)
    first = batch(SUMS, ids, schedule, 50, seed=1)
    again = batch(SUMS, ids, schedule, 50, seed=1)
    assert (first.ids == again.ids).all()
    assert (first.weights == again.weights).all()
    for other in (batch(SUMS, ids, schedule, 51, seed=1), batch(SUMS, ids, schedule, 50, seed=2)):
        assert first.ids.shape != other.ids.shape or (first.ids != other.ids).any()
    for tokens, weights in zip(first.ids, first.weights, strict=True):
        end = tokens.tolist().index(ids.end)
        prompt = tokens.tolist().index(ids.of_word(" =")[0])
        assert (weights[: prompt + 1] == 0).all()
        assert weights[end] == schedule.decided
        assert (weights[end + 1 :] == 0).all()
        # One word is wrong on purpose, and is no target.
        assert (weights[prompt + 1 : end] == 0).sum() == 1


def test_the_loss_is_the_weighted_mean_over_targets() -> None:
    tokenizer = make_tokenizer(SUMS.numbers)
    network = make_network(SMALL, tokenizer, seed=3).eval()
    rows = batch(SUMS, WordIds(tokenizer), SHORT, 40, seed=1)
    with torch.inference_mode():
        loss = float(loss_of(network, rows))
        logits = network(input_ids=torch.from_numpy(rows.ids)).logits.double().numpy()
    total = weight = 0.0
    for row in range(len(rows.ids)):
        for place in range(1, rows.ids.shape[1]):
            given = logits[row, place - 1]
            shifted = given - given.max()
            log_prob = shifted[rows.ids[row, place]] - np.log(np.exp(shifted).sum())
            total -= float(rows.weights[row, place]) * log_prob
            weight += float(rows.weights[row, place])
    assert loss == pytest.approx(total / weight, rel=1e-5)


def test_training_lowers_the_loss_and_repeats() -> None:
    tokenizer = make_tokenizer(SUMS.numbers)

    def trained(steps: int) -> tuple[list[float], torch.Tensor]:
        network = make_network(SMALL, tokenizer, seed=3)
        made = train(network, SUMS, WordIds(tokenizer), SHORT, seed=4)
        losses = [next(made)[1] for _ in range(steps)]
        return losses, network.lm_head.weight.detach().clone()

    losses, _ = trained(60)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    (first, weights), (again, same) = trained(5), trained(5)
    assert first == again
    assert torch.equal(weights, same)


def test_the_learning_rate_and_the_items_follow_the_steps() -> None:
    schedule = Schedule(steps=1000, items=(1, 19), warmup=10, rate=1.0, growth=0.5)
    rates = [schedule.rate_at(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 1e-4
    items = [schedule.most_items(step) for step in range(1000)]
    assert items[0] == 1
    assert items == sorted(items)
    assert items[499] == items[-1] == 19
    assert items[498] <= 19


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models of a quick run, made by the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSM_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in ("sums-teacher", "sums-student-1"):
            assert run_cli(["study", "lab", "--quick", "--run", name]) == 0
        runs = [recipe.quick(run) for run in recipe.runs(0, 5)]
        out = tmp_path_factory.mktemp("out")
        link_models(out, runs)
        # A second time they are there already.
        assert make(runs[0], _must_not_be_told) == folder_of(runs[0])
        assert [kept(run) for run in runs] == ["", None, "", *[None] * 9]
    return out


def _must_not_be_told(text: str) -> None:
    raise AssertionError(text)


def test_models_have_figures_and_load(made: Path) -> None:
    assert sorted(path.name for path in made.iterdir()) == ["sums-student-1", "sums-teacher"]
    facts = {}
    for folder in made.iterdir():
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert model.config.vocab_size == len(tokenizer) >= 1000
        assert tokenizer.chat_template is None
        found = facts[folder.name] = json.loads((folder / MANIFEST).read_text())
        assert 5e5 <= found["parameters"] == sum(p.numel() for p in model.parameters()) <= 1e7
        assert found["figures"].keys() >= {"accuracy", "entropy", "wide", "after_slips"}
    # A teacher takes the whole schedule, a student is kept at a look.
    assert facts["sums-teacher"]["updates"] == 8
    assert facts["sums-student-1"]["updates"] == 4


async def test_the_teachers_engine_loads_one(made: Path) -> None:
    from teacher_server.engines.torch.transformers import TransformersEngine

    async with running(TransformersEngine(str(made / "sums-teacher"), device="cpu")) as engine:
        assert engine.description.vocabulary_size >= 1000


def test_figures_against_sums_in_float64(made: Path) -> None:
    student = measuring.load(made / "sums-teacher")
    rows = measuring.draw_rows(SUMS, 2, seed=5)
    rollouts = measuring.respond(student, SUMS, rows, seed=5)
    assert [r.token_ids.tolist() for r in rollouts] == [
        r.token_ids.tolist() for r in measuring.respond(student, SUMS, rows, seed=5)
    ]
    model = AutoModelForCausalLM.from_pretrained(made / "sums-teacher")
    entropies, wide = [], []
    for rollout in rollouts:
        prompt = len(rollout.prompt.token_ids)
        ids = [*rollout.prompt.token_ids.tolist(), *rollout.token_ids.tolist()]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0].double().numpy()
        for row in logits[prompt - 1 : -1]:
            p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            entropies.append(-(p * np.log(p)).sum())
            wide.append(np.sort(p)[-8:].sum() <= 0.98)
    found = measuring.spread(student, rollouts)
    assert found["entropy"] == pytest.approx(np.mean(entropies), abs=1e-5)
    assert found["wide"] == pytest.approx(np.mean(wide))


def test_a_model_below_a_bar_is_refused_by_its_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSM_CACHE", str(tmp_path))
    teacher, student = recipe.runs(0, 1, ["sums"])
    good = {"accuracy": 0.95, "entropy": 1.4, "wide": 0.6}
    assert missed(teacher, good) == []
    for figure, value in (("accuracy", 0.89), ("entropy", 0.29), ("wide", 0.09)):
        with pytest.raises(LsmError, match=f"not a teacher: {figure} {value:.3f} is not"):
            refuse_below_bars(teacher, good | {figure: value})
    assert missed(student, {"accuracy": 0.2}) == []
    for value in (0.19, 0.51, float("nan")):
        assert len(missed(student, {"accuracy": value})) == 1
    # It is refused again without being made again, as long as the bars count.
    with pytest.raises(LsmError, match="not a teacher: wide") as again:
        make(teacher, _must_not_be_told)
    assert refusal_of(teacher).name in str(again.value.fix)
    assert kept(teacher, bars=True) == str(again.value)
    assert kept(teacher) is None


def test_a_student_of_both_tasks_is_one_of_each() -> None:
    (student,) = [run for run in recipe.runs(0, 1, ["sums-order"]) if run.looks is not None]
    assert student.looks is not None
    assert student.looks.find_a_student([0.3, 0.3])
    assert not student.looks.find_a_student([0.5, 0.29])
    assert not student.looks.find_a_student([0.29, 0.5])
    assert missed(student, {"sums/accuracy": 0.2, "order/accuracy": 0.5}) == []
    for figure in ("sums/accuracy", "order/accuracy"):
        inside = {"sums/accuracy": 0.3, "order/accuracy": 0.3}
        for value in (0.19, 0.51):
            assert missed(student, inside | {figure: value}) == [
                f"{figure} {value:.3f} is not within 0.2 and 0.5"
            ]


def test_a_student_of_both_tasks_is_made_and_measured_on_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSM_CACHE", str(tmp_path))
    quick = recipe.quick(recipe.runs(0, 1, ["sums-order"])[-1])
    assert quick.looks is not None
    run = replace(quick, measured=2, looks=replace(quick.looks, prompts=2))
    told: list[str] = []
    figures = json.loads((make(run, told.append, bars=False) / MANIFEST).read_text())["figures"]
    for task in ("sums", "order"):
        assert f"{task}/right 0%" in told[0]
        assert {f"{task}/accuracy", f"{task}/entropy", f"{task}/after_slips"} <= figures.keys()


def test_a_name_of_the_cache_is_of_the_recipe() -> None:
    run = recipe.runs(0, 5)[0]
    assert recipe.digest(run) == recipe.digest(recipe.runs(0, 5)[0])
    others = [replace(run, seed=7), replace(run, schedule=SHORT), replace(run, sizes=SMALL)]
    assert len({recipe.digest(one) for one in (run, *others)}) == 4
    folders = {folder_of(run) for run in recipe.runs(0, 5) + recipe.runs(1, 5)}
    assert len(folders) == 2 * 2 * (1 + 5)


@pytest.mark.parametrize(
    ("file", "concerned"),
    [
        ("language/order.py", {"order", "sums-order"}),
        ("language/digits.py", {"sums-digits"}),
        ("language/sums_order.py", {"sums-order"}),
        ("language/sums.py", set(recipe.TASKS)),
        ("training.py", set(recipe.TASKS)),
        ("recipe.py", set()),
    ],
)
def test_a_name_of_the_cache_is_of_the_files_of_its_task(
    file: str, concerned: set[str], tmp_path: Path
) -> None:
    folder = tmp_path / "lab"
    shutil.copytree(recipe.FOLDER, folder)
    runs = recipe.runs(0, 1, list(recipe.TASKS))
    before = {run.name: recipe.digest(run, folder) for run in runs}
    with (folder / file).open("a") as text:
        text.write("# changed\n")
    changed = {run.task for run in runs if recipe.digest(run, folder) != before[run.name]}
    assert changed == concerned


def test_runs_of_tasks() -> None:
    def names(students: int, *tasks: str) -> list[str]:
        return [run.name for run in recipe.runs(0, students, tasks)]

    assert names(0, "sums", "order") == ["sums-teacher", "order-teacher"]
    # Tasks that have one teacher make it once.
    assert names(1, "sums-digits", "sums", "sums-digits") == [
        "sums-teacher",
        "sums-digits-student-1",
        "sums-student-1",
    ]
    # A student of two tasks has the teacher of each.
    assert names(1, "sums-order") == ["sums-teacher", "order-teacher", "sums-order-student-1"]
    every = recipe.runs(0, 2, list(recipe.TASKS))
    assert {run.task for run in every if run.looks is not None} == recipe.TASKS.keys()


def test_the_next_students_are_made_for_refused_ones() -> None:
    def names(*refused: int, tried: int) -> list[str]:
        done = [f"sums-student-{number}" for number in range(1, tried + 1)]
        gone = [f"sums-student-{number}" for number in refused]
        return [run.name for run in recipe.instead_of(gone, done, 4, 2, ["sums"])]

    assert names(tried=0) == ["sums-student-1", "sums-student-2"]
    assert names(tried=2) == names(1, tried=3) == []
    assert names(1, tried=2) == ["sums-student-3"]
    assert names(1, 2, tried=2) == ["sums-student-3", "sums-student-4"]
    assert names(1, 2, 3, 4, 5, tried=5) == ["sums-student-6"]
    # Three times as many as were asked for, and no more.
    assert names(1, 2, 3, 4, 5, 6, tried=6) == []
    third = recipe.instead_of(["sums-student-1"], ["sums-student-1"], 4, 2, ["sums"])[-1]
    assert third == recipe.runs(4, 3, ["sums"])[-1]


def test_a_task_that_is_not_there_is_refused() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = parser.parse_args(["--task", "sums,chess"])
    with pytest.raises(ConfigurationError, match="there is no task 'chess'") as refused:
        command.run(arguments)
    assert "sums-digits" in refused.value.fix


def test_a_run_that_fails_is_told() -> None:
    told: list[str] = []
    failed = make_together(["no-run"], ["--quick"], 1, told.append)
    assert failed.keys() == {"no-run"}
    assert "there is no run 'no-run'" in failed["no-run"]
    assert told[-1] == failed["no-run"]


def test_the_document_has_what_was_made_and_what_was_refused(made: Path, tmp_path: Path) -> None:
    models = {folder.name: folder.resolve() for folder in made.iterdir()}
    document = describe(
        ["sums"], models, {"sums-student-2": "it is not"}, {"command": "c", "commit": "d"}
    )
    assert document["refused"] == {"sums-student-2": "it is not"}
    assert document["models"].keys() == models.keys()
    assert document["tasks"].keys() == {"sums"}
    assert document["models"]["sums-teacher"]["figures"]["tokens"] > 0
    write_prompts(tmp_path, ["sums"])
    lines = (tmp_path / "sums-held-out.jsonl").read_text().splitlines()
    rows = [row for _, row in recipe.TASKS["sums"].prompts("held_out", None)]  # type: ignore[arg-type]
    assert [json.loads(line)["prompt"] for line in lines] == [row["prompt"] for row in rows]
