"""``teacher-server inspect``: what a running teacher thinks of each token of a text.

It asks the server's HTTP interface, and shows the rows in the terminal, as JSON, or as one
HTML file that needs no server.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_proto.errors import ConfigurationError, LsmError, TeacherUnavailableError

from teacher_server.commands.client_arguments import (
    add_tls_arguments,
    add_token_arguments,
    credentials,
)
from teacher_server.commands.over_http import ask, place_of
from teacher_server.commands.question import body_of

if TYPE_CHECKING:
    from teacher_proto.client.credentials import ClientCredentials, Identification

    from teacher_server.commands.over_http import Place

TIMEOUT_SECONDS = 120.0
# What goes with a question alone.
OF_A_QUESTION = (
    "response",
    "response_ids",
    "tools",
    "teacher",
    "tokenizer",
    "diff",
    "diff_token_file",
)
EPILOG = """\
examples:
  teacher-server inspect --prompt 'What is 2+2?' --response ' 4.'
  teacher-server inspect --messages '[{"role":"user","content":"Hi"}]' --response 'Hello!'
  teacher-server inspect --prompt 'a' --response 'b' --diff http://other:8080
  teacher-server inspect --rows rows.json --out rows.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--url",
        default="http://127.0.0.1:8080",
        help="the server's HTTP address (http://127.0.0.1:8080)",
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT", help="the prompt as text")
    asked.add_argument("--messages", metavar="JSON", help="the prompt as a list of messages")
    asked.add_argument("--prompt-ids", metavar="IDS", help="the prompt as ids: 1,2,3")
    asked.add_argument(
        "--rows", type=Path, metavar="FILE", help="show a document of rows and ask nobody"
    )
    parser.add_argument("--response", metavar="TEXT", help="whose tokens are looked at")
    parser.add_argument("--response-ids", metavar="IDS", help="the same as ids: 4,5,6")
    parser.add_argument("--tools", metavar="JSON", help="with --messages: a list of tools")
    parser.add_argument("--teacher", metavar="NAME", help="which, where the server has several")
    parser.add_argument(
        "--tokenizer", metavar="HASH", help="registered before; the response is in its tokens"
    )
    parser.add_argument("--top-k", type=int, default=8, metavar="K", help="of each row (8)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="(1.0)")
    parser.add_argument(
        "--diff", metavar="URL", help="ask another server too, and show the difference"
    )
    parser.add_argument(
        "--diff-token-file", type=Path, metavar="FILE", help="its token, where it has another"
    )
    parser.add_argument("--json", action="store_true", help="print the document of rows")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write one HTML file")
    add_token_arguments(parser)
    add_tls_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Shows the rows.

    Raises:
        ConfigurationError: arguments that do not go together, or are not what they should be.
        InvalidRequestError: a file that is no document of rows.
        LsmError: whatever the server refuses the request with.
    """
    from teacher_proto.page import render_offline

    if arguments.rows:
        _check_asks_nobody(arguments)
        document = _read(arguments.rows)
    else:
        document = _ask(arguments)
    if arguments.out is not None:
        try:
            arguments.out.write_text(render_offline(document), encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"cannot be written ({error.strerror})", where=str(arguments.out)
            ) from error
        sys.stderr.write(f"written to {arguments.out}\n")
    if arguments.json:
        sys.stdout.write(json.dumps(document) + "\n")
    elif arguments.out is None:
        from rich.console import Console

        from teacher_server.commands.rows_table import tables

        console = Console()
        for part in tables(document):
            console.print(part)
    return 0


def _read(path: Path) -> dict[str, Any]:
    from teacher_proto.page import check_document

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"cannot be read as JSON ({error})",
            where=str(path),
            fix="give a document of rows (docs/inspect.md)",
        ) from error
    check_document(document if isinstance(document, dict) else {})
    found: dict[str, Any] = document
    return found


def _ask(arguments: argparse.Namespace) -> dict[str, Any]:
    from teacher_proto.page import make_document, sequence_of_reply

    body = body_of(arguments)
    sequences = []
    # Both are checked before the first is asked.
    for place in _places(arguments):
        url = f"{place.base}/v1/score"
        reply = post(url, place.own, body)
        try:
            sequence = sequence_of_reply(f"{reply['teacher']} at {place.address}", reply)
            sequence["facts"] = {
                "teacher": reply["teacher"],
                "identity": reply["identity"]["digest"][:12],
                "K": body["top_k"],
                "temperature": body["temperature"],
            }
            sequence |= {"request": body, "server": place.base, "needs_token": place.guarded}
            sequences.append(sequence)
            document = make_document(sequences)
        except (KeyError, IndexError, TypeError) as error:
            raise _not_there(url, "the answer is none of a teacher server") from error
    return document


def _places(arguments: argparse.Namespace) -> list[Place]:
    """Whom the arguments ask, one server or two."""
    places = [place_of(arguments.url, arguments, "--url")]
    if arguments.diff is not None:
        other: ClientCredentials | None = None
        if arguments.diff_token_file is not None:
            told = credentials(arguments, with_token=True)
            other = replace(told, token="", token_file=arguments.diff_token_file)
        places.append(place_of(arguments.diff, arguments, "--diff", other))
    elif arguments.diff_token_file is not None:
        raise ConfigurationError(
            "is of no server", where="--diff-token-file", fix="give --diff, or --token-file"
        )
    return places


def _check_asks_nobody(arguments: argparse.Namespace) -> None:
    for name in OF_A_QUESTION:
        if getattr(arguments, name) is not None:
            raise ConfigurationError(
                "nobody is asked with --rows",
                where=f"--{name.replace('_', '-')}",
                fix="leave it out, or leave out --rows",
            )


def post(url: str, own: Identification, body: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON that a server answers; raises its refusal as the error that it is.

    Raises:
        TeacherUnavailableError: nothing answers there, or not a teacher server.
    """
    import http.client
    import urllib.error

    try:
        answer = ask(
            url,
            own,
            TIMEOUT_SECONDS,
            body=json.dumps(body).encode(),
            failed=partial(_not_there, url),
        )
        found = json.loads(answer)
    except urllib.error.HTTPError as error:
        try:
            told = error.read()
        except (OSError, http.client.HTTPException):
            told = b""
        raise _refusal(url, error.code, told) from error
    except (ValueError, RecursionError) as error:
        raise _not_there(url, "the answer is no JSON") from error
    if not isinstance(found, dict):
        raise _not_there(url, "the answer is none of a teacher server")
    return found


def _refusal(url: str, code: int, content: bytes) -> LsmError:
    from teacher_server.http.errors import BY_CLASS

    try:
        detail = json.loads(content)["error"]
        told = {key: detail[key] for key in ("where", "fix", "reason")}
        what = str(detail["what"])
    except (ValueError, KeyError, TypeError):
        return _not_there(url, f"HTTP {code}")
    kind = next((kind for kind, status in BY_CLASS if status == code), LsmError)
    return kind(what, retry_after=detail.get("retry_after"), **told)


def _not_there(url: str, why: str) -> TeacherUnavailableError:
    return TeacherUnavailableError(
        f"no rows ({why})", where=url, fix="give --url with the HTTP port of a teacher-server"
    )
