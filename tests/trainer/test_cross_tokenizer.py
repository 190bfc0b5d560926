"""Whole runs whose student has another tokenizer than the teacher, over real sockets."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.client import TeacherClient
from teacher_proto.errors import ConfigurationError, ContractMismatchError
from teacher_proto.rows import LOG_TAIL, SUPPORT
from teacher_proto.templates.thinking import THINKING
from teacher_proto.types import Level, PositionClass, SpecialRole, Status, TeacherIdentity
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import student_trainer.startup.teacher as start_of_teacher
from student_trainer.commands.dry_run import compare_tokenizers
from student_trainer.data import load_prompts
from student_trainer.data.templates import thinking, thinking_tail
from student_trainer.first_example import first_example
from student_trainer.rollout.generate import generate
from student_trainer.run.checkpoint import TrainState
from student_trainer.run.directory import read_metrics
from student_trainer.run.resume import check_settings
from student_trainer.settings.student import StudentSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.start import Start
from student_trainer.student.model import load_student
from student_trainer.teacher.link import TeacherLink
from student_trainer.teacher.mask_reasons import EXPLAINED, metric_of
from student_trainer.teacher.own_tokenizer import special_roles
from student_trainer.train import train
from student_trainer.update.metrics import UpdateTotals
from student_trainer.update.updater import Updater
from teacher_server.realign.pair.roles import role_table
from tests.support.models import ENGLISH, IM_START, train_tokenizer
from tests.support.replies import with_arrays
from tests.trainer.processes import Server, serve
from tests.trainer.test_run import (
    resumed_exactly,
)

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), default=tiny_model_dir) as running:
        yield running


@pytest.fixture
def config(make_config: MakeConfig, server: Server, foreign_student_dir: Path) -> MakeConfig:
    def make(model: Path = foreign_student_dir, **sections: dict[str, Any]) -> TrainConfig:
        teacher = {"address": server.address, **sections.pop("teacher", {})}
        every = {"every": 1, **sections.pop("checkpoint", {})}
        return make_config(model, teacher=teacher, checkpoint=every, **sections)

    return make


def permuted_twin(model: Path, folder: Path) -> Path:
    """The same network over the same texts' tokens under other ids: to the service a
    foreign tokenizer, to the test the teacher itself."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    size = len(document["model"]["vocab"])
    special = sorted(token["id"] for token in document["added_tokens"])
    others = [i for i in range(size) if i not in special]
    moved = dict(zip(others, np.random.default_rng(0).permutation(others).tolist(), strict=True))
    moved |= {token: token for token in special}
    vocab = document["model"]["vocab"]
    document["model"]["vocab"] = {text: moved[token] for text, token in vocab.items()}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        chat_template=tokenizer.chat_template,
    )
    twin = AutoModelForCausalLM.from_pretrained(model)
    order = torch.tensor([old for old, _ in sorted(moved.items(), key=lambda pair: pair[1])])
    with torch.no_grad():
        for matrix in (twin.lm_head.weight, twin.model.embed_tokens.weight):
            matrix.copy_(matrix[order].clone())
    twin.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def test_a_run_trains_evaluates_and_shows_what_it_knows(
    config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = tmp_path / "held.jsonl"
    held_out.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in ("the sun", "a day was")))
    settings = config(
        run={"steps": 12},
        data={"held_out": str(held_out)},
        loss={"top_k": 48, "masked_chunks": True, "chunk_clamp": 0.3},
        optimizer={"lr": 3e-3},
        evaluation={"prompts": 2, "frozen_rows": 256, "max_new_tokens": 32, "top_k": 48},
        report={"html": True},
    )
    with caplog.at_level(logging.INFO, logger="student_trainer"):
        run = train(settings)
    assert "level CROSS, its rows are realigned" in caplog.text
    assert "unknown to the teacher; level CROSS, coverage" in caplog.text
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        shares = [line[f"realign_{kind.name.lower()}_share"] for kind in PositionClass]
        assert sum(shares) == pytest.approx(1)
        assert 0 < line["realign_coverage"] <= 1
        assert line["tokens_used"] + line["unusable_tokens"] == pytest.approx(
            line["tokens"] + line["chunk_tokens"] - line["dropped_small_support"]
        )
        assert line["dropped_non_finite"] == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["support_reverse_kl_after"] < summary["support_reverse_kl_before"]
    assert 0 < summary["support_coverage_before"] <= 1
    assert summary["support_masked_share_before"] == summary["support_masked_share_after"]
    assert summary["teacher_bits_per_byte_before"] > 0
    assert summary["reverse_kl_before"] is None, "there is no full distribution to compare"
    page = (run / "report.html").read_text()
    assert "The teacher has another tokenizer" in page
    assert "Teacher&#39;s mass on it (coverage), frozen positions" in page
    assert "What the teacher knows in the student" in page


def test_coarse_rows_are_learnt_from_and_otherwise_masked(
    config: MakeConfig, tmp_path: Path
) -> None:
    """The same first step twice: what is coarse in one run is masked in the other, for the same
    reasons, and all the other rows are the same."""
    lines, examples = {}, {}
    for coarse in ("bucket", "mask"):
        settings = config(
            run={"steps": 1, "output_dir": str(tmp_path / coarse)},
            loss={"top_k": 48, "coarse": coarse},
            report={"metric_rows": 10_000},
        )
        (lines[coarse],) = read_metrics(train(settings) / "metrics.jsonl")
        student = load_student(settings.student)
        prompts = load_prompts(settings.data, student.tokenizer)
        with TeacherLink(settings.named_teachers["default"], student, run="test") as link:
            examples[coarse] = "".join(
                first_example(
                    student, prompt, settings.rollout, settings.loss, seed=seed, teacher=link
                )
                for seed, prompt in enumerate(prompts.train)
            )
    with_them, without = lines["bucket"], lines["mask"]
    assert with_them["coarse_tokens"] > 0 == without["coarse_tokens"]
    assert with_them["realign_coarse_share"] > 0 == without["realign_coarse_share"]
    masked = with_them["realign_masked_share"] + with_them["realign_coarse_share"]
    assert without["realign_masked_share"] == pytest.approx(masked)
    assert without["unusable_tokens"] == with_them["unusable_tokens"] + with_them["coarse_tokens"]
    assert 0 < with_them["realign_coarse_rest"] <= 0.9
    for name in (*map(metric_of, EXPLAINED), "realign_coverage", "realign_open_mass",
                 "teacher_support_mass", "student_support_mass", "log_ratio_mean"):  # fmt: skip
        assert with_them[name] == pytest.approx(without[name]), name
    reasons = [with_them[metric_of(name)] for name in EXPLAINED]
    assert sum(reasons) == pytest.approx(masked)
    assert with_them[metric_of("OTHER")] == 0
    assert " coarse, DOUBTFUL: " in examples["bucket"]
    assert " unknown, DOUBTFUL: " in examples["mask"]


KINDS = {
    "lsm": {},
    "chunks": {"loss": {"masked_chunks": True, "chunk_clamp": 5.0, "mean": "sequence"}},
    "student, stale": {"loss": {"support": "student+sampled"}, "pipeline": {"staleness": 1}},
    "mask": {"loss": {"coarse": "mask"}},
    "sampled_token": {"loss": {"kind": "sampled_token"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    config: MakeConfig, tmp_path: Path, kind: str
) -> None:
    settings = config(**KINDS[kind])
    whole = resumed_exactly(settings, tmp_path)
    coarse = sum(line["coarse_tokens"] for line in read_metrics(whole / "metrics.jsonl"))
    assert (coarse > 0) is (kind not in ("mask", "sampled_token"))


def test_a_run_of_before_coarse_rows_goes_on_without_them_or_asked(config: MakeConfig) -> None:
    identity = TeacherIdentity("", "", "", "", "", "")
    for allowed, coarse, refused in (
        ([], "bucket", True), ([], "mask", False), (["loss.coarse"], "bucket", False),
    ):  # fmt: skip
        settings = config(loss={"coarse": coarse}, checkpoint={"allow_changed": allowed})
        values = settings.model_dump(mode="json")
        current = TrainState(1, 1, 1, "", {"default": identity}, copy.deepcopy(values))
        del values["loss"]["coarse"]
        before = TrainState(1, 1, 1, "", {"default": identity}, values)
        check_settings(before, settings.model_dump(mode="json"))
        with Start(settings) as start:
            start.student = load_student(settings.student)
            start.resumed = before
            if refused:
                with pytest.raises(ConfigurationError, match="left coarse rows out") as caught:
                    start_of_teacher.tokenizer(start)
                assert caught.value.where == "loss.coarse"
            else:
                assert "level CROSS" in start_of_teacher.tokenizer(start)
            start.resumed = current
            assert "level CROSS" in start_of_teacher.tokenizer(start)


def test_with_one_tokenizer_a_run_of_before_coarse_rows_goes_on(
    config: MakeConfig, student_model_dir: Path
) -> None:
    settings = config(student_model_dir)
    values = settings.model_dump(mode="json")
    del values["loss"]["coarse"]
    with Start(settings) as start:
        start.student = load_student(settings.student)
        start.resumed = TrainState(
            1, 1, 1, "", {"default": TeacherIdentity("", "", "", "", "", "")}, values
        )
        assert start_of_teacher.tokenizer(start).startswith("one tokenizer")


def test_a_dry_run_tells_the_level_once_the_service_knows_it(config: MakeConfig) -> None:
    settings = config()
    with TeacherLink(
        settings.named_teachers["default"], load_student(settings.student), run="test"
    ) as link:
        assert compare_tokenizers(settings).endswith("level CROSS")
        told = link.describe_tokenizers()
        assert "level CROSS, its rows are realigned; they differ in the vocabulary (" in told
        assert told.endswith("(the student's, then the teacher's)")
    nobody = config(teacher={"address": "127.0.0.1:1", "connect_timeout_seconds": 0.3})
    assert compare_tokenizers(nobody).startswith("not compared (no ")


def test_rows_are_those_of_their_tokens(
    config: MakeConfig, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """The student is the teacher under other ids: where both mean the same its loss is
    near 0, and rows that are one off are far from it."""
    twin = permuted_twin(tiny_model_dir, tmp_path / "twin")
    settings = config(twin, loss={"top_k": 64})
    student = load_student(settings.student)
    prompts = load_prompts(settings.data, student.tokenizer).train
    rollouts = generate(student, prompts, settings.rollout, seed=0, step=1)
    updater = Updater(student, settings, realigned={"default"})
    with TeacherLink(settings.named_teachers["default"], student, run="test") as link:
        assert link.level is Level.CROSS
        scores = [
            link.submit_rollouts([r], 64, 1.0, log_tail=True, coarse=True).result()[0]
            for r in rollouts
        ]

    def loss(of: list[Any]) -> float:
        figures = UpdateTotals()
        updater.gradients(rollouts, of.__getitem__, figures, 1)
        return figures.losses[0]

    shifted = []
    for score in scores:
        assert score.realignment is not None
        rolled = {n: np.roll(score.rows.arrays()[n], 1, 0)
                  for n in (*SUPPORT, *LOG_TAIL)}  # fmt: skip
        classes = np.roll(score.realignment.position_class, 1)
        block = replace(score.realignment, position_class=classes)
        shifted.append(replace(with_arrays(score, **rolled), realignment=block))
    right, wrong = loss(scores), loss(shifted)
    assert right < 0.2 * wrong, (right, wrong)


def test_a_server_that_forgot_the_tokenizer_is_taught_it_again(
    make_config: MakeConfig, tiny_model_dir: Path, foreign_student_dir: Path, tmp_path: Path
) -> None:
    student = load_student(StudentSettings(model=str(foreign_student_dir), device="cpu"))
    with serve(tmp_path / "first", default=tiny_model_dir) as first:
        settings = make_config(foreign_student_dir, teacher={"address": first.address})
        prompts = load_prompts(settings.data, student.tokenizer).train[:1]
        rollouts = generate(student, prompts, settings.rollout, seed=0, step=1)
        with TeacherLink(settings.named_teachers["default"], student, run="test") as link:
            before = link.submit_rollouts(rollouts, 16, 1.0).result()
            first.stop()
            port = int(first.address.rpartition(":")[2])
            with serve(tmp_path / "second", port=port, default=tiny_model_dir) as second:
                assert second.address == first.address
                after = link.submit_rollouts(rollouts, 16, 1.0).result()
                # Nor does it when the server had to make room, or somebody dropped it.
                with TeacherClient(second.address, run="test") as other:
                    assert other.drop_tokenizer(student.tokenizer_hash, timeout=60.0)
                    warmer = link.submit_rollouts(rollouts, 16, 1.5).result()
                    (known,) = other.list_tokenizers(timeout=60.0).tokenizers
                assert known.levels == {"default": Level.CROSS}
                assert {scores.status for scores in warmer} == {Status.OK}
    for one, other in zip(before, after, strict=True):
        assert one.status is other.status is Status.OK
        assert np.array_equal(one.rows.support.ids, other.rows.support.ids)  # type: ignore[arg-type]
        assert np.array_equal(one.rows.support.log_probs, other.rows.support.log_probs)  # type: ignore[arg-type]


def test_what_cannot_be_realigned_is_refused_before_the_first_step(
    config: MakeConfig, foreign_student_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "words"
    shutil.copytree(foreign_student_dir, folder)
    words = Tokenizer(models.WordLevel({"<eos>": 0, "the": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.decoder = decoders.WordPiece()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(folder)
    settings = config(folder, loss={"mask": {"strings": []}})
    with pytest.raises(ContractMismatchError, match=r"does not take it: .*WordLevel") as caught:
        train(settings)
    assert caught.value.reason == "TOKENIZER_REFUSED"
    assert not (settings.run.output_dir / "metrics.jsonl").exists()
    with pytest.raises(ConfigurationError, match="could belong to their ids"):
        train(config(loss={"tail": "bucket"}))
    with pytest.raises(ConfigurationError, match="too small by one factor"):
        train(config(loss={"kind": "generalised_reverse_kl"}))


@pytest.mark.parametrize(("opens", "closes"), THINKING)
def test_all_marks_of_thinking_are_known_everywhere(opens: str, closes: str) -> None:
    assert thinking_tail(f"assistant: {opens}\n") == f"{opens}\n"
    assert thinking(f"{opens}\n\n{closes}") == "closed"
    of_server = role_table({1: opens, 2: closes}, {})
    tokenizer = train_tokenizer(ENGLISH, 300)
    tokenizer.add_special_tokens({"additional_special_tokens": [opens, closes]})
    of_trainer = special_roles(tokenizer, [tokenizer.eos_token_id])
    marks = ((1, opens, SpecialRole.THINK_OPEN), (2, closes, SpecialRole.THINK_CLOSE))
    for token, mark, role in marks:
        assert of_server[token] is role
        assert of_trainer[tokenizer.convert_tokens_to_ids(mark)] is role


def test_roles_are_read_where_the_student_keeps_them() -> None:
    tokenizer = train_tokenizer(ENGLISH, 300)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert special_roles(tokenizer, [end]) == {
        end: SpecialRole.TURN_END,
        pad: SpecialRole.PADDING,
    }
    # A second terminator that the template does not write ends the text, not the turn.
    tokenizer.add_special_tokens({"additional_special_tokens": [IM_START, "[THINK]"]})
    think = tokenizer.convert_tokens_to_ids("[THINK]")
    start = tokenizer.convert_tokens_to_ids(IM_START)
    tokenizer.bos_token = IM_START
    assert special_roles(tokenizer, [pad, end]) == {
        end: SpecialRole.TURN_END,
        pad: SpecialRole.END_OF_TEXT,
        start: SpecialRole.BEGIN_OF_TEXT,
        think: SpecialRole.THINK_OPEN,
    }
    # Without a template nothing says which of them ends a turn; an ordinary token is none.
    tokenizer.chat_template = None
    ordinary = tokenizer.convert_tokens_to_ids("t")
    assert special_roles(tokenizer, [end, ordinary])[end] is SpecialRole.END_OF_TEXT
    assert ordinary not in special_roles(tokenizer, [end, ordinary])
