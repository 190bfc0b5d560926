"""docs/prompts.md says what is done."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from student_trainer.settings.data import DataSettings
from student_trainer.settings.teacher import TeacherSettings
from student_trainer.teacher.prompts import carried

PAGE = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", PAGE, re.M))
STATES = {
    "opens thinking": "<think>\n",
    "opens and closes it": "<think>\n\n</think>\n\n",
    "does not": "",
}


def rows(section: str) -> list[list[str]]:
    """The cells of the section's table, without its head."""
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_table_of_thinking_is_what_is_carried() -> None:
    table = rows("Thinking that a template opens")
    told = {}
    for student, teacher, reads in table:
        left_out = "without" in reads
        added = "then" in reads
        told[student, teacher] = (left_out, added)
        assert ("if its tokenizer has a token" in reads) == (
            (student, teacher) == ("opens and closes it", "does not")
        )
    both = [(s, t) for s in STATES for t in STATES if s != t]
    assert sorted(told) == sorted(both)
    for student, teacher in both:
        found = carried(STATES[student], STATES[teacher], has_tokens=True)
        assert found == told[student, teacher], (student, teacher)
    for state in STATES.values():
        assert carried(state, state, has_tokens=True) == (False, False)


def test_the_settings_on_the_page_are_settings() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    values = tomllib.loads(block)
    data = DataSettings.model_validate({"train": "rows.jsonl", **values["data"]})
    assert data.now == "2026-11-29T05:53:12"
    assert TeacherSettings.model_validate(values["teacher"]) == TeacherSettings()
    kinds = [cells[0].strip('`"') for cells in rows("The token that begins a text")]
    for kind in kinds:
        DataSettings.model_validate({"train": "rows.jsonl", "add_bos": kind})
    assert kinds[0] == DataSettings(train="rows.jsonl").add_bos
