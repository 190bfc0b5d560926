"""The trainer's report in a real browser: its charts say their values, its frame shows rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from student_trainer.report import write_report
from tests.page.conftest import Looking, problems
from tests.report.conftest import HOSTILE, write_run

pytestmark = pytest.mark.browser


def test_a_report_says_its_values_and_shows_rows(
    look: Callable[..., Looking], tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    looking = look(write_report(write_run(tmp_path / "run")).as_uri())
    figure = looking.page.locator("figure", has_text="Training loss")
    chart, tip = figure.locator("svg"), figure.locator(".tip")
    chart.focus()
    looking.page.keyboard.press("End")
    expect(tip).to_have_text("step 3loss: 0.6667")
    looking.page.keyboard.press("ArrowLeft")
    expect(tip).to_have_text("step 2loss: 1")
    looking.page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    chart.hover()
    expect(tip).to_contain_text("step 2")
    rows = looking.page.frame_locator("iframe.rows")
    looking.page.locator("iframe.rows").scroll_into_view_if_needed()
    expect(rows.locator("body")).to_contain_text(HOSTILE)
    looking.shot("report")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_is_accessible(
    look: Callable[..., Looking], axe: str, tmp_path: Path, scheme: str
) -> None:
    page = write_report(write_run(tmp_path / "run"))
    assert problems(look(page.as_uri(), color_scheme=scheme), axe) == []
