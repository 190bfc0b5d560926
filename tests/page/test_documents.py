"""Documents of rows: what is refused, and the page that holds one."""

from __future__ import annotations

import json
import math
import re
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import InvalidRequestError
from teacher_proto.page import check_document, embedded, make_document, render_offline
from teacher_proto.page.document import SEQUENCE, TOKEN, sequence_of_reply
from teacher_proto.page.files import one_script, page_files, source_hash
from teacher_proto.page.offline import frame_sources
from teacher_proto.program.mask_reasons import REASON_TEXTS

from tests.page.documents import HOSTILE, sequence

PAGE = (Path(__file__).parents[2] / "docs" / "inspect.md").read_text()
GOOD = make_document([sequence("a", 6)], "title")


class Elements(HTMLParser):
    """Names and texts of a page's elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes.append(dict(attrs))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open, []).append(data)


def test_a_page_runs_and_loads_nothing_but_its_own_script() -> None:
    page = Elements(render_offline(GOOD, HOSTILE))
    assert page.names.count("script") == 2
    assert "img" not in page.names
    assert not any({"src", "href"} & found.keys() for found in page.attributes)
    rows, script = page.texts["script"]
    assert json.loads(rows) == GOOD
    (policy,) = [a["content"] for a in page.attributes if a.get("http-equiv")]
    style = "".join(page.texts["style"])
    assert f"script-src {source_hash(script)}; style-src {source_hash(style)}" in str(policy)
    assert frame_sources() == (source_hash(script), source_hash(style))
    assert "unsafe" not in str(policy)


def test_an_embedded_page_has_no_origin() -> None:
    (frame,) = Elements(embedded(GOOD, HOSTILE)).attributes
    assert frame["sandbox"] == "allow-scripts"
    assert Elements(str(frame["srcdoc"])).names.count("script") == 2


def test_the_one_script_holds_each_module_once_and_imports_nothing() -> None:
    script = one_script("offline.js")
    assert not re.search(r"^\s*(import|export)\b", script, re.MULTILINE)
    for path, content in page_files().items():
        if path.startswith("view/"):
            comment = content.decode().partition("\n")[0]
            assert script.count(comment) == 1, path


def test_the_page_s_files_name_nothing_elsewhere() -> None:
    for path, content in page_files().items():
        found = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", content.decode()))
        assert found <= {"http://www.w3.org"}, path


WRONG: tuple[tuple[str, str, Any], ...] = (
    ("prompt", "prompt", 1),
    ("text", "text", ["a"]),
    ("facts", "facts", ["a"]),
    ("facts", "facts.a", {"a": True}),
    ("facts", "facts.a", {"a": [1]}),
    ("facts", "facts.a", {"a": math.inf}),
    ("chunks", "chunks", 1.0),
    ("chunks", "chunks[1]", [1.0, "a"]),
    ("server", "server", "javascript:alert(1)"),
    ("server", "server", "http://a'; touch /tmp/x; '"),
    ("server", "server", "http://a\n"),
    ("server", "server", "http://a b"),
    ("server", "server", 'http://a"'),
    ("server", "server", "http://a\\"),
    ("server", "server", "http://a`b`"),
    ("server", "server", "http://é"),
    ("server", "server", ["http://a"]),
    ("needs_token", "needs_token", "yes"),
    ("request", "request", "text"),
    ("request", "request", {"top_k": math.nan}),
    ("request", "request", {"top_k": {1}}),
    ("other", "other", {"name": "a", "tokens": [], "more": 1}),
)
WRONG_TOKENS: tuple[tuple[str, Any], ...] = (
    ("scored", "no"),
    ("log_prob", 1000.0),
    ("student", True),
    ("log_tail", 2),
    ("loss", 10**400),
    ("loss", -math.inf),
    ("text", 1),
    ("class", 1),
    ("top", {"a": 1}),
    ("top", [1]),
    ("top", [[1, 2, -1.0]]),
    ("top", [[1, "a", 1000.0]]),
    ("student_top", [[1, "a", None]]),
    ("student_top", "abc"),
)


def of_sequence(key: str, value: Any) -> Any:
    return lambda document: document["sequences"][0].update({key: value})


def of_token(key: Any, value: Any) -> Any:
    return lambda document: document["sequences"][0]["tokens"][2].update({key: value})


@pytest.mark.parametrize("document", [None, [], "text", 1])
def test_a_document_is_an_object(document: Any) -> None:
    with pytest.raises(InvalidRequestError):
        check_document(document)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d.update(format="lsm-rows/2"), "format"),
        (lambda d: d.update(sequences=[]), "sequences"),
        (lambda d: d["sequences"][0].pop("name"), "sequences[0]"),
        (lambda d: d["sequences"][0].update(token="x"), "sequences[0]"),
        (lambda d: d["sequences"][0]["tokens"][2].pop("id"), "sequences[0].tokens[2]"),
        (lambda d: d["sequences"][0]["tokens"][2].update(logprob=0.1), "sequences[0].tokens[2]"),
        (
            lambda d: d["sequences"][0]["tokens"][2].update(loss=float("nan")),
            "sequences[0].tokens[2].loss",
        ),
        (
            lambda d: d["sequences"][0]["tokens"][2].update(top=[[1, "a"]]),
            "sequences[0].tokens[2].top",
        ),
        (lambda d: d["sequences"][0].update(other={"tokens": []}), "sequences[0].other"),
        (lambda d: d.update(title=1), "title"),
        (lambda d: d.update(sequences=[[]]), "sequences[0]"),
        (lambda d: d["sequences"][0].update(tokens={}), "sequences[0].tokens"),
        (lambda d: d["sequences"][0].update(tokens=None), "sequences[0].tokens"),
        *((of_sequence(key, value), f"sequences[0].{where}") for key, where, value in WRONG),
        *((of_token(key, value), f"sequences[0].tokens[2].{key}") for key, value in WRONG_TOKENS),
        (of_token("id", 10**400), "sequences[0].tokens[2]"),
        (of_token(7, 1), "sequences[0].tokens[2]"),
    ],
)
def test_what_is_no_document_is_refused(change: Any, where: str) -> None:
    document = deepcopy(GOOD)
    change(document)
    with pytest.raises(InvalidRequestError) as found:
        check_document(document)
    assert found.value.where == where


def test_the_documentation_names_every_field() -> None:
    tables = PAGE.partition("| of a sequence |")[2]
    named = {name for line in tables.splitlines() for name in re.findall(r"`(\w+)`", line[:80])}
    assert named >= SEQUENCE | TOKEN
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    check_document(json.loads(example))


def test_the_page_says_the_reasons_as_the_programs_do() -> None:
    script = page_files()["view/text.js"].decode()
    said = dict(re.findall(r'^  ([A-Z_]+): "(.*)",$', script, re.MULTILINE))
    assert said == {reason.name: text for reason, text in REASON_TEXTS.items()}


def test_a_continuation_without_rows_is_told() -> None:
    reply = {"results": [{"status": "NON_FINITE", "detail": "row 3", "rows": []}]}
    with pytest.raises(InvalidRequestError, match="NON_FINITE row 3"):
        sequence_of_reply("a", reply)
