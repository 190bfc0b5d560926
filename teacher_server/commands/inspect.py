"""``teacher-server inspect``: what a running teacher thinks of each token of a text.

It asks the server's HTTP interface, and shows the rows in the terminal, as JSON, or as one
HTML file that needs no server.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_proto.errors import ConfigurationError, LsmError, TeacherUnavailableError

from teacher_server.commands.client_arguments import (
    add_tls_arguments,
    add_token_arguments,
    identification,
)

if TYPE_CHECKING:
    from teacher_proto.client.credentials import Identification

TIMEOUT_SECONDS = 120.0
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

    document = _read(arguments.rows) if arguments.rows else _ask(arguments)
    if arguments.out is not None:
        try:
            arguments.out.write_text(render_offline(document), encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"cannot be written ({error.strerror})", where=str(arguments.out)
            ) from error
        sys.stdout.write(f"written to {arguments.out}\n")
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
    except (OSError, ValueError) as error:
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

    body = _body(arguments)
    sequences = []
    for url in filter(None, (arguments.url, arguments.diff)):
        base = url.rstrip("/")
        address = base.partition("://")[2].partition("/")[0]
        own = identification(arguments, address, with_token=True)
        reply = post(f"{base}/v1/score", own, body)
        sequence = sequence_of_reply(f"{reply['teacher']} at {address}", reply)
        sequence["facts"] = {
            "teacher": reply["teacher"],
            "identity": reply["identity"]["digest"][:12],
            "K": body["top_k"],
            "temperature": body["temperature"],
        }
        guarded = any(name == "authorization" for name, _ in own.metadata())
        sequence |= {"request": body, "server": base, "needs_token": guarded}
        sequences.append(sequence)
    return make_document(sequences)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of POST /v1/score."""
    if (arguments.response is None) == (arguments.response_ids is None):
        raise ConfigurationError(
            "exactly one of --response and --response-ids is needed",
            where="--response",
            fix="say whose tokens are looked at",
        )
    if arguments.tools is not None and arguments.messages is None:
        raise ConfigurationError("tools go with messages", where="--tools", fix="use --messages")
    prompt: dict[str, Any]
    if arguments.prompt is not None:
        prompt = {"text": arguments.prompt}
    elif arguments.messages is not None:
        prompt = {"messages": _list(arguments.messages, "--messages")}
        if arguments.tools is not None:
            prompt["template_arguments"] = {"tools": _list(arguments.tools, "--tools")}
    else:
        prompt = {"token_ids": _ids(arguments.prompt_ids, "--prompt-ids")}
    continuation = (
        {"text": arguments.response}
        if arguments.response is not None
        else {"token_ids": _ids(arguments.response_ids, "--response-ids")}
    )
    crossed = arguments.tokenizer is not None
    body: dict[str, Any] = {
        "prompt": prompt,
        "continuations": [continuation],
        "top_k": arguments.top_k,
        "temperature": arguments.temperature,
        "returns": {"log_tail": arguments.top_k > 0, "realignment": crossed, "coarse": crossed},
    }
    if arguments.teacher is not None:
        body["teacher"] = arguments.teacher
    if crossed:
        body["tokenizer_hash"] = arguments.tokenizer
    return body


def _list(text: str, where: str) -> list[Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"is no JSON ({error})", where=where) from error
    if not isinstance(found, list):
        raise ConfigurationError("is no list", where=where, fix="write a JSON list of objects")
    return found


def _ids(text: str, where: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise ConfigurationError("is no list of ids", where=where, fix="write 1,2,3") from None


def post(url: str, own: Identification, body: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON that a server answers; raises its refusal as the error that it is.

    Raises:
        TeacherUnavailableError: nothing answers there, or not a teacher server.
    """
    import urllib.error
    import urllib.request

    headers: dict[str, str] = {"Content-Type": "application/json", **dict(own.metadata())}  # type: ignore[arg-type]
    asked = urllib.request.Request(url, json.dumps(body).encode(), headers)
    secured = urllib.request.HTTPSHandler(context=own.context)
    try:
        with urllib.request.build_opener(secured).open(asked, timeout=TIMEOUT_SECONDS) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found
    except urllib.error.HTTPError as error:
        raise _refusal(url, error.code, error.read()) from error
    except (OSError, ValueError) as error:
        raise _not_there(url, str(getattr(error, "reason", error))) from error


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
