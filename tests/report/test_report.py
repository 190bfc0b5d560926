"""report.html stands alone, escapes what the run says, and can be made again."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path

import pytest
from teacher_proto.errors import ConfigurationError
from teacher_proto.page.offline import frame_sources

from student_trainer import cli
from student_trainer.evaluation.course.points import Point
from student_trainer.evaluation.results import Evaluation
from student_trainer.report import write_report
from student_trainer.report.page.all_charts import charts_of_run, charts_of_runs
from student_trainer.run.lock import locked
from tests.report.conftest import HOSTILE, evaluation, step, write_run

# What a page may not have: whatever loads something, and what runs in place of being shown.
LOADS = {"img", "link", "object", "embed", "base", "source", "video", "audio"}


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.titles: list[str] = []
        self.policy = ""
        self.frames: list[str] = []
        self.text = ""
        self.scripts: list[tuple[str | None, str]] = []
        self._script: str | None = None
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("src", "href", "srcset", "data", "action")
        self.links += [value or "" for name, value in attrs if name in names]
        told = dict(attrs)
        if told.get("http-equiv") == "Content-Security-Policy":
            self.policy = told["content"] or ""
        if tag == "iframe":
            self.frames.append(told["srcdoc"] or "")
        self._within = tag
        if tag == "script":
            self.scripts.append((told.get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            kind, before = self.scripts[-1]
            self.scripts[-1] = (kind, before + data)
        else:
            self.titles += [data] if self._within == "h3" else []
            self.text += data + " "


def test_the_page_needs_nothing_beside_it(run_dir: Path) -> None:
    source = write_report(run_dir).read_text()
    page = Page(source)
    assert page.links == []
    assert not LOADS & set(page.tags)
    assert all(not LOADS & set(Page(frame).tags) for frame in page.frames)
    style = source.partition("<style>")[2].partition("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style
    (own,) = [text for kind, text in page.scripts if kind is None]
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert page.policy == (
        f"default-src 'none'; script-src 'sha256-{digest}' {frame_sources()[0]}; "
        "style-src 'unsafe-inline'"
    )


def test_every_chart_says_its_values_to_the_script(run_dir: Path) -> None:
    page = Page(write_report(run_dir).read_text())
    assert page.titles == [
        "Held-out prompts over the run",
        "Training loss",
        "Answers during training",
        "Repetition",
        "Gradient norm",
        "Learning rate",
        "Throughput",
        "Where a step's time goes",
        "The teacher's support",
        "The signal of single tokens",
        "The student's distribution",
        "Loss by position",
        "Log-ratio by position",
        "Lengths of answers",
        "Teacher's probability against the student's",
    ]
    told = [json.loads(text) for kind, text in page.scripts if kind == "application/json"]
    assert len(told) == page.tags.count("svg") - 1, "the heat map says its values in its cells"
    curves = {curve["label"]: curve for panel in told for curve in panel["curves"]}
    assert curves["loss"] == {"label": "loss", "x": [1, 2, 3], "y": [2, 1, 0.6667]}
    assert curves["student's mass"]["y"] == [None, 0.8, 0.8], "the first step has none"
    assert curves["reverse KL, frozen"] == {
        "label": "reverse KL, frozen", "x": [0, 3], "y": [2, 0.5],
    }  # fmt: skip
    loss, _ = [one for one in told if one["unit"] == "token of the response"]
    assert [curve["y"] for curve in loss["curves"]] == [[1, None], [1, 0.5]]
    (lengths,) = [one for one in told if one["unit"] == "tokens"]
    assert [curve["y"] for curve in lengths["curves"]] == [[0, 1], [0, 0.75, 0.25]]
    assert lengths["names"] == {"0.0": "1", "1.0": "2", "2.0": "4"}
    assert "same best token" not in curves, "it was not measured"


def test_a_heat_map_says_its_cells(run_dir: Path) -> None:
    page = Page(write_report(run_dir).read_text())
    assert page.tags.count("rect") == 4, "cells without a token are not drawn"
    text = " ".join(page.text.split())
    # Of the last of three steps.
    assert "teacher's probability up to 1, student's probability up to 1: 40 (71.4%)" in text
    assert "teacher's probability up to 1/65536, student's probability up to 1: 9 (16.1%)" in text
    (run_dir / "metrics.jsonl").write_text(json.dumps({**step(1), "tokens_by_probabilities": []}))
    assert "rect" not in Page(write_report(run_dir).read_text()).tags


def test_texts_of_the_run_are_shown_as_text(run_dir: Path) -> None:
    page = Page(write_report(run_dir).read_text())
    assert [kind for kind, _ in page.scripts].count(None) == 1
    assert "alert" not in "".join(text for _, text in page.scripts)
    assert page.tags.count("b") == page.text.count(" warning "), "a finding's title is one"
    assert page.text.count(HOSTILE) == 1, "of an answer"
    (frame,) = page.frames
    kept = Page(frame)
    (told,) = [json.loads(text) for kind, text in kept.scripts if kind == "application/json"]
    (sequence,) = told["sequences"]
    assert sequence["text"] == f"ok{HOSTILE}"
    assert [token["loss"] for token in sequence["tokens"]] == [0.5, 2.5]
    assert sequence["tokens"][0]["top"] == [[1, "ok", -0.5]]
    assert sequence["tokens"][0]["log_tail"] == pytest.approx(math.log(1 - math.exp(-0.5)))
    assert HOSTILE not in "".join(text for kind, text in kept.scripts if kind == "module")
    assert [kind for kind, _ in kept.scripts] == ["application/json", "module"]
    assert "Say <hi>" in page.text
    assert "a <b>run</b>" in page.text


def test_the_page_holds_the_figures_the_settings_and_the_teacher(run_dir: Path) -> None:
    text = " ".join(Page(write_report(run_dir).read_text()).text.split())
    assert "Reverse KL, frozen positions 2.000 0.500 -1.875 to -1.125 better" in text
    assert "Same most likely token, frozen positions 50.0% 87.5% -12.5% to +87.5% unclear" in text
    assert "Same most likely token, fresh answers 50.0% 50.0% Answer length" in text
    assert "torch 2.99" in text
    assert "rollout.top_p 0.9" in text
    assert "teacher identity id-1" in text
    assert "teacher quantization none" in text


def test_a_run_without_evaluation_says_so(unevaluated: Path) -> None:
    page = Page(write_report(unevaluated).read_text())
    assert "was not evaluated" in page.text
    assert "Held-out prompts over the run" not in page.titles


def test_an_unfinished_run_says_so(run_dir: Path) -> None:
    (run_dir / "evaluation" / "after.json").unlink()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    page = Page(write_report(run_dir).read_text())
    assert "has not been evaluated after training" in page.text
    assert "3 steps of" in page.text


def test_the_command_makes_it_again(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report", str(run_dir)]) == 0
    assert capsys.readouterr().out == f"wrote {run_dir / 'report.html'}\n"
    assert "refresh" not in Page((run_dir / "report.html").read_text()).text
    assert (run_dir / "summary.json").exists()


def test_a_run_that_goes_on_is_followed(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as going_on:
        going_on.enter_context(locked(run_dir))
        pages = []

        def wait(seconds: float) -> None:
            pages.append((run_dir / "report.html").read_text())
            if len(pages) == 2:
                going_on.close()  # the run ends

        monkeypatch.setattr("student_trainer.commands.report.time.sleep", wait)
        assert cli.run(["report", str(run_dir), "--follow"]) == 0
    assert all('<meta http-equiv="refresh" content="15">' in page for page in pages)
    assert 'http-equiv="refresh"' not in (run_dir / "report.html").read_text()
    assert capsys.readouterr().out.splitlines() == [
        f"following the run: open {run_dir / 'report.html'}",
        f"wrote {run_dir / 'report.html'}",
    ]


def test_several_runs_are_on_one_page(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(tmp_path / "other")
    config = (other / "config.toml").read_text().replace("top_k = 32", "top_k = 64")
    (other / "config.toml").write_text(config.replace("a <b>run</b>", "another"))
    target = tmp_path / "both.html"
    assert cli.run(["report", str(run_dir), str(other), "--out", str(target)]) == 0
    page = Page(target.read_text())
    text = " ".join(page.text.split())
    assert "2 runs side by side" in text
    assert "loss.top_k 32 64" in text
    assert "rollout.top_p" not in text, "the same in both"
    assert "Reverse KL, frozen positions 2.000 → 0.500 better 2.000 → 0.500 better" in text
    told = [json.loads(text) for kind, text in page.scripts if kind == "application/json"]
    assert all({c["label"] for c in p["curves"]} == {"a <b>run</b>", "another"} for p in told)
    with pytest.raises(ConfigurationError, match="given twice"):
        cli.run(["report", str(run_dir), str(run_dir)])
    with pytest.raises(ConfigurationError, match="a single run can be followed"):
        cli.run(["report", str(run_dir), str(other), "--follow"])
    with pytest.raises(ConfigurationError, match="in its own directory"):
        cli.run(["report", str(run_dir), "--out", str(target)])


def test_each_of_several_teachers_has_held_out_charts_of_its_own() -> None:
    def whole(kl: float) -> Evaluation:
        both = {"maths": evaluation(kl, "hi", 9.0), "code": evaluation(kl * 2, "hi", 9.0)}
        lengths = both["maths"].lengths
        return Evaluation(8, None, None, lengths, (), "f", None, 1.0, by_teacher=both)

    points = [Point(0, whole(2.0)), Point(3, whole(0.5))]
    chart = charts_of_run([], points)[0]
    panels = {panel.label: {c.label: c for c in panel.curves} for panel in chart.panels}
    assert panels["nats per position (maths)"]["reverse KL, frozen"].y == [2.0, 0.5]
    assert panels["nats per position (code)"]["reverse KL, frozen"].y == [4.0, 1.0]
    assert "mean length, tokens" in panels, "of all"
    assert panels["nats per position (code)"]["reverse KL, frozen"].low, "with its interval"
    side = charts_of_runs({"one": [], "two": []}, {"one": points, "two": points[:1]})[0]
    panels = {panel.label: {c.label: c for c in panel.curves} for panel in side.panels}
    of_code = panels["reverse KL, frozen, nats per position (code)"]
    assert (of_code["one"].y, of_code["two"].y) == ([4.0, 1.0], [4.0])


def test_steps_of_an_earlier_version_have_no_time(run_dir: Path) -> None:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["time"] = "2026-01-02T03:04:05"
    lines[0].pop("time", None)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report(run_dir).read_text())
    assert "last step ended" in page.text
    assert "first step ended" not in page.text


def test_the_report_of_400_steps_is_small(run_dir: Path) -> None:
    lines = [json.dumps(step(n)) + "\n" for n in range(1, 401)]
    (run_dir / "metrics.jsonl").write_text("".join(lines))
    assert write_report(run_dir).stat().st_size < 500_000


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"config.toml": None}, r"config\.toml: the run has no config\.toml"),
        ({"metrics.jsonl": None}, r"metrics\.jsonl: the run has no metrics\.jsonl"),
        ({"metrics.jsonl": ""}, "it holds no step"),
        ({"metrics.jsonl": '{"step": 1\n{}\n'}, "line 1"),
        ({"metrics.jsonl": "[1]\n"}, "line 1 is not the metrics of a step"),
        ({"config.toml": "a = "}, r"config\.toml: it cannot be read"),
        ({"evaluation/after.json": "{}"}, r"after\.json: it cannot be read"),
        ({"rollouts/step-000003.jsonl.gz": "no"}, r"step-000003\.jsonl\.gz: it cannot be read"),
        ({"machine.json": "{"}, r"machine\.json: it cannot be read"),
    ],
)
def test_a_missing_or_damaged_file_is_named(
    run_dir: Path, damage: dict[str, str | None], message: str
) -> None:
    for name, content in damage.items():
        if content is None:
            (run_dir / name).unlink()
        else:
            (run_dir / name).write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        write_report(run_dir)
    assert not (run_dir / "report.html").exists()


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such directory"):
        write_report(tmp_path / "none")
