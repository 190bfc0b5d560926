"""report.html stands alone, escapes what the run says, and can be made again."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from teacher_proto.errors import ConfigurationError

from student_trainer import cli
from student_trainer.report import write_report
from tests.report.conftest import HOSTILE

PNG = b"\x89PNG\r\n\x1a\n"
PLOTS = {"held_out", "loss", "lengths", "gradient", "support", "student", "time"}


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("src", "href", "srcset", "data", "action")
        self.links += [value or "" for name, value in attrs if name in names]

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def test_the_page_needs_nothing_beside_it(run_dir: Path) -> None:
    source = write_report(run_dir).read_text()
    page = Page(source)
    assert page.tags.count("img") == len(PLOTS)
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "@import" not in source
    assert "url(" not in source
    assert {path.stem for path in (run_dir / "plots").iterdir()} == PLOTS
    assert all(path.read_bytes()[:8] == PNG for path in (run_dir / "plots").iterdir())


def test_texts_of_the_run_are_shown_as_text(run_dir: Path) -> None:
    page = Page(write_report(run_dir).read_text())
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert HOSTILE in page.text
    assert "Say <hi>" in page.text
    assert "a <b>run</b>" in page.text


def test_the_page_holds_the_figures_the_settings_and_the_teacher(run_dir: Path) -> None:
    text = " ".join(Page(write_report(run_dir).read_text()).text.split())
    assert "Reverse KL, frozen positions 2.000 0.500 better" in text
    assert "Same most likely token, frozen positions 50.0% 87.5% better" in text
    assert "Same most likely token, fresh answers 50.0% 50.0% Answer length" in text
    assert "rollout.top_p 0.9" in text
    assert "teacher identity id-1" in text
    assert "teacher quantization none" in text


def test_a_run_without_evaluation_says_so(unevaluated: Path) -> None:
    page = Page(write_report(unevaluated).read_text())
    assert "was not evaluated" in page.text
    assert page.tags.count("img") == len(PLOTS) - 1
    assert not (unevaluated / "plots" / "held_out.png").exists()


def test_an_unfinished_run_says_so(run_dir: Path) -> None:
    (run_dir / "evaluation" / "after.json").unlink()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    page = Page(write_report(run_dir).read_text())
    assert "has not been evaluated after training" in page.text
    assert "3 steps of" in page.text


def test_the_command_makes_it_again(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_report(run_dir).read_bytes()
    (run_dir / "report.html").unlink()
    assert cli.run(["report", str(run_dir)]) == 0
    assert capsys.readouterr().out == f"wrote {run_dir / 'report.html'}\n"
    assert (run_dir / "report.html").read_bytes() == first
    assert (run_dir / "summary.json").exists()


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
