"""``teacher-server inspect`` as a process against a real server."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from teacher_proto.errors import ConfigurationError, TeacherUnavailableError
from teacher_proto.page import check_document, make_document

from teacher_server.commands import inspect, top
from teacher_server.commands.rows_table import shown, tables
from tests.access.pki import ALICE, write_secret
from tests.page.documents import sequence
from tests.server.processes import Program, run, serving

GIVEN = "a-token-of-a-run-0123456789abcdef"
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
    assert ended.stderr == f"written to {out}\n"
    document = json.loads(ended.stdout)
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
        ("--rows", str(rows), "--response", "a"): (2, "--response"),
        ("--rows", str(rows), "--diff", url): (2, "--diff"),
        ("--url", url, *CHAT, "--diff-token-file", str(rows)): (2, "--diff-token-file"),
        ("--url", url, *CHAT, "--tls"): (2, "is not encrypted"),
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


def test_nor_in_the_class_of_a_row() -> None:
    found = sequence("a", 1)
    found["tokens"][0] |= {"class": "\x1b[31mX", "reason": "\x07Y"}
    console = Console(width=400, file=io.StringIO())
    console.print(*tables(make_document([found])))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "⟨U+001B⟩[31mx (⟨U+0007⟩y)" in said
    assert not {"\x1b", "\x07"} & {*said}


@pytest.mark.parametrize("program", ["inspect", "top"])
@pytest.mark.parametrize(
    ("url", "given", "why"),
    [
        ("http://remote.example:8080", {"tls": True}, "is not encrypted"),
        ("http://remote.example:8080", {"ca": Path("ca.pem")}, "is not encrypted"),
        ("http://remote.example:8080", {}, "plain text"),
        ("http://remote.example", {}, "plain text"),
        ("http://127.0.0.1:1@remote.example", {}, "no URL"),
        ("http://127.0.0.1@remote.example:1", {}, "no URL"),
        ("ftp://127.0.0.1", {}, "no URL"),
        ("127.0.0.1:8080", {}, "no URL"),
        ("http://127.0.0.1:8080/'\n", {}, "no URL"),
    ],
)
def test_a_token_never_leaves_in_plain_text(
    program: str, url: str, given: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSM_TOKEN", GIVEN)
    arguments = namespace(program, url, given)
    with pytest.raises(ConfigurationError, match=why):
        (inspect if program == "inspect" else top).run(arguments)


def test_both_servers_of_a_difference_are_looked_at_before_one_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LSM_TOKEN", GIVEN)
    given = {"diff": "http://other.example:8080"}
    with pytest.raises(ConfigurationError, match=r"other\.example:8080 in plain text"):
        inspect.run(namespace("inspect", "http://127.0.0.1:1", given))


@pytest.mark.parametrize("program", ["inspect", "top"])
def test_a_token_follows_nobody_elsewhere(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSM_TOKEN", GIVEN)
    with answering() as (other, shown_there):
        away = f"HTTP/1.1 302 Found\r\nLocation: {other}/\r\nContent-Length: 0\r\n\r\n"
        with answering(away.encode()) as (url, shown_here):
            with pytest.raises(TeacherUnavailableError, match="HTTP 302"):
                (inspect if program == "inspect" else top).run(namespace(program, url, {}))
            assert GIVEN.encode() in shown_here[0]
        assert shown_there == []


def test_a_plain_question_takes_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSM_TOKEN", GIVEN)
    with answering() as (other, shown_there), answering(b"HTTP/1.1 200 OK\r\n\r\n{}") as (url, _):
        monkeypatch.setenv("http_proxy", other)
        with pytest.raises(TeacherUnavailableError):
            inspect.run(namespace("inspect", url, {}))
        assert shown_there == []


def test_the_other_server_of_a_difference_is_shown_its_own_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSM_TOKEN", GIVEN)
    own = write_secret(tmp_path / "token", ALICE)
    arguments = {"diff": "http://127.0.0.1:2", "diff_token_file": own}
    first, second = inspect._places(namespace("inspect", "http://127.0.0.1:1", arguments))
    assert first.own.metadata() == (("authorization", f"Bearer {GIVEN}"),)
    assert second.own.metadata() == (("authorization", f"Bearer {ALICE}"),)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\x00\x12\x04 no HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000,
        b'HTTP/1.1 200 OK\r\n\r\n{"teacher": "a", "results": []}',
        b'HTTP/1.1 200 OK\r\n\r\n{"teacher": "a", "results": [{"status": "OK", "rows": [{}]}]}',
        b"HTTP/1.1 500 X\r\nContent-Length: 100\r\n\r\n{}",
    ],
)
def test_what_is_no_teacher_server_is_told(answer: bytes) -> None:
    with answering(answer) as (url, _), pytest.raises(TeacherUnavailableError, match="no rows"):
        inspect.run(namespace("inspect", url, {}))


def namespace(program: str, url: str, given: dict[str, Any]) -> argparse.Namespace:
    """The arguments of a question to this URL."""
    parser = argparse.ArgumentParser()
    (inspect if program == "inspect" else top).add_arguments(parser)
    asked = {"inspect": ["--prompt", "a", "--response", "b"], "top": ["--once"]}[program]
    found = parser.parse_args([*asked, "--url", url])
    vars(found).update(given)
    return found


@contextlib.contextmanager
def answering(answer: bytes = b"") -> Iterator[tuple[str, list[bytes]]]:
    """A server's URL that answers one caller so, and what callers have sent it."""
    sent: list[bytes] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            caller, _ = listener.accept()
            with caller:
                sent.append(caller.recv(65536))
                caller.sendall(answer)
                caller.shutdown(socket.SHUT_WR)
                while caller.recv(65536):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving_one = threading.Thread(target=serve)
        serving_one.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", sent
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            serving_one.join()
