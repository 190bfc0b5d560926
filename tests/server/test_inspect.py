"""``teacher-server inspect`` as a process against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from teacher_proto.page import check_document, make_document

from teacher_server.commands.rows_table import shown
from tests.page.documents import sequence
from tests.server.processes import Program, run, serving

CHAT = ("--messages", '[{"role":"user","content":"Hi"}]', "--response", " the teacher\n\x1b[31m")


@pytest.fixture(scope="module")
def url(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("inspected")
    with serving(folder, "--model", str(tiny_model_dir), "--dtype", "float32") as found:
        yield _url(found)


def _url(program: Program) -> str:
    return f"http://{program.facts['http_address']}"


def test_json_is_a_document_and_out_is_a_page(url: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.html"
    ended = run("inspect", "--url", url, *CHAT, "--json", "--out", str(out), "--top-k", "3")
    assert ended.returncode == 0, ended.stderr
    said, line = ended.stdout.splitlines()
    assert said == f"written to {out}"
    document = json.loads(line)
    check_document(document)
    (found,) = document["sequences"]
    assert "".join(token["text"] for token in found["tokens"]) == CHAT[3]
    assert all(len(token["top"]) == 3 for token in found["tokens"])
    assert found["request"]["prompt"]["messages"][0]["content"] == "Hi"
    assert out.read_text().startswith("<!doctype html>")


def test_the_terminal_shows_rows_and_obeys_none(url: str) -> None:
    ended = run("inspect", "--url", url, *CHAT)
    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stdout
    assert "⟨U+001B⟩" in ended.stdout
    assert "·the" in ended.stdout
    assert "the teacher's choices" in ended.stdout


def test_another_server_is_compared_token_by_token(url: str) -> None:
    ended = run("inspect", "--url", url, *CHAT, "--diff", url)
    assert ended.returncode == 0, ended.stderr
    assert "A - B is +0.0000 on average, 0.0000 at most" in ended.stdout


def test_what_is_wrong_is_told_with_its_code(url: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text("{}")
    cases = {
        ("--url", url, *CHAT, "--top-k", "99999"): (2, "top_k"),
        ("--url", url, "--prompt", "a"): (2, "--response"),
        ("--url", url, "--prompt-ids", "x", "--response", "a"): (2, "--prompt-ids"),
        ("--url", "http://127.0.0.1:1", "--prompt", "a", "--response", "b"): (4, "no rows"),
        ("--rows", str(rows)): (2, "format"),
    }
    for arguments, (code, part) in cases.items():
        ended = run("inspect", *arguments)
        assert (ended.returncode, part in ended.stderr) == (code, True), ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_file_of_rows_needs_no_server(tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.json", tmp_path / "rows.html"
    rows.write_text(json.dumps(make_document([sequence("kept", 5)])))
    ended = run("inspect", "--rows", str(rows), "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    assert out.exists()
    ended = run("inspect", "--rows", str(rows))
    assert "kept" in ended.stdout


def test_nothing_in_a_token_reaches_the_terminal() -> None:
    text = "a \x1b]0;title\x07\u202e\u200b\ud800\n"
    assert shown(text) == "a·⟨U+001B⟩]0;title⟨U+0007⟩⟨U+202E⟩⟨U+200B⟩⟨U+D800⟩⏎"
    assert shown(None) == "∅"
