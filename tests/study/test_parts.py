"""What the studies share: intervals and slopes against known values, origin, written files."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
from teacher_proto.errors import ConfigurationError

from student_trainer import cli
from student_trainer.study.parts import written
from student_trainer.study.parts.intervals import log_slope, mean_interval, student_quantile
from student_trainer.study.parts.origin import commit, origin

# Of the usual tables, to the digits that they print.
QUANTILES = [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)]


@pytest.mark.parametrize(("freedom", "value"), QUANTILES)
def test_students_quantiles_are_those_of_the_tables(freedom: int, value: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(value, abs=5e-4)
    assert student_quantile(0.5, freedom) == pytest.approx(0, abs=1e-12)


def test_an_interval_is_students() -> None:
    found = mean_interval([1.0, 2.0, 6.0])
    reach = 4.302653 * math.sqrt(7) / math.sqrt(3)
    assert found.mean == 3.0
    assert found.low == pytest.approx(3 - reach, rel=1e-6)
    assert found.high == pytest.approx(3 + reach, rel=1e-6)


def test_a_slope_is_the_exponent() -> None:
    x = [2.0, 5.0, 9.0, 40.0]
    assert log_slope(x, [3 * value**1.7 for value in x]) == pytest.approx(1.7, rel=1e-12)
    noisy = [1.0, 4.0, 3.0, 20.0]
    fitted = np.polyfit(np.log(x), np.log(noisy), 1)[0]
    assert log_slope(x, noisy) == pytest.approx(float(fitted), rel=1e-10)


@pytest.mark.parametrize("values", [[1.0], [], [1.0, math.nan], [1.0, math.inf]])
def test_no_interval_of_too_little(values: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more finite"):
        mean_interval(values)


@pytest.mark.parametrize(
    ("x", "y"), [([1], [1]), ([1, 1], [1, 2]), ([1, 2], [0, 1]), ([1, 2], [math.nan, 1])]
)
def test_no_slope_of_what_has_none(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more places"):
        log_slope(x, y)


def git(folder: Path, *arguments: str) -> str:
    names = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    done = subprocess.run(
        ["git", "-C", str(folder), *names, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_is_that_of_the_code(tmp_path: Path) -> None:
    source = tmp_path / "code.py"
    source.write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    assert commit(source) is None, "in a repository that does not have the file"
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(source) == head
    source.write_text("a = 2\n")
    assert commit(source) == f"{head}+changes"


def test_the_command_is_as_it_is_typed() -> None:
    options = {
        "gammas": (0.0, 0.25, 1.0),
        "seeds": (1, 2),
        "no_sweep": True,
        "left": False,
        "steps": None,
        "model": Path("/home/somebody/models/teacher"),
    }
    command = origin("variance", options)["command"]
    assert command == (
        "student-trainer study variance --gammas 0,0.25,1 --seeds 1,2 --no-sweep --model teacher"
    )


def test_results_are_written_whole_and_the_same_again(tmp_path: Path) -> None:
    def draw(document: object, path: Path) -> None:
        figure, axes = written.new_figure("test", 2, 4, 2)
        axes[0].plot([1, 2], [3, 4], label="a curve")
        axes[0].legend()
        written.save_figure(figure, path)

    paths = written.write_results(tmp_path / "new" / "out", "name", {"a": 1}, "| a |\n", draw)
    assert [path.name for path in paths] == ["name.json", "name.md", "name.svg"]
    assert json.loads(paths[0].read_text()) == {"a": 1}
    first = paths[2].read_bytes()
    assert b"<svg" in first
    draw(None, paths[2])
    assert paths[2].read_bytes() == first


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        written.write_results(tmp_path, "name", {"a": math.nan}, "", lambda document, path: None)


def test_what_draws_is_asked_for_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written.check_pictures()
    monkeypatch.setattr(written.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"matplotlib.*\[study\]"):
        written.check_pictures()


def test_the_command_of_a_study_with_an_operand_can_be_typed() -> None:
    command = origin("compare", {"models": Path("in/lab"), "only": None}, ["sums.toml"])["command"]
    assert command == "student-trainer study compare sums.toml --models lab"


@pytest.mark.parametrize(
    "arguments",
    [
        ["games", "--students", "-1"],
        ["lab", "--seed", "x"],
        ["lab", "--jobs", "0"],
        ["compare", "sums.toml", "--jobs", "0"],
    ],
)
def test_a_count_that_is_none_is_refused_in_words(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["study", *arguments])
    assert f"{arguments[-1]!r} is no whole number" in capsys.readouterr().err
