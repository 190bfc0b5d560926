"""``teacher-server tokenizers``: ``compare`` shows two tokenizers side by side, no model
needed; ``list`` and ``drop`` are about those that are registered with a running server."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from teacher_proto.errors import ConfigurationError
from teacher_proto.fingerprint.probe import Encode
from teacher_proto.tokenizer_hash import tokenizer_hash

from teacher_server.commands.client_arguments import (
    add_address_argument,
    add_tls_arguments,
    add_token_arguments,
    credentials,
)

if TYPE_CHECKING:
    from teacher_proto.client import TeacherClient


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "compare tokenizers; list and drop those registered with a server"
    tokenizers = commands.add_parser("tokenizers", help=text, description=text)
    actions = tokenizers.add_subparsers(dest="action", required=True, metavar="ACTION")
    compare = actions.add_parser(
        "compare", help="how well a teacher's rows can be realigned to a student's tokenizer"
    )
    where = "a model's folder or hub name, loaded as a run does, or a tokenizer.json"
    compare.add_argument("student", metavar="STUDENT", help=where)
    compare.add_argument("teacher", metavar="TEACHER", help=where)
    compare.add_argument("--text", type=Path, metavar="FILE", help="text to measure on")
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.set_defaults(run=run)
    listing = actions.add_parser("list", help="what runs have registered with a server")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=run_list)
    dropping = actions.add_parser("drop", help="make a server forget what a run registered")
    dropping.add_argument("tokenizer_hash", metavar="HASH", help="fingerprint, as list shows it")
    dropping.set_defaults(run=run_drop)
    for action in (listing, dropping):
        add_address_argument(action)
        run_help = "whose; with credentials always their own"
        action.add_argument("--run", dest="run_name", default="", metavar="NAME", help=run_help)
        action.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds (10)")
        add_token_arguments(action)
        add_tls_arguments(action)


def run_list(arguments: argparse.Namespace) -> int:
    """Raises what ``TeacherClient.list_tokenizers`` raises."""
    with _client(arguments) as client:
        found = client.list_tokenizers(timeout=arguments.timeout)
    if arguments.json:
        document = asdict(found)
        for one in document["tokenizers"]:
            one["levels"] = {name: level.name for name, level in one["levels"].items()}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return 0
    for one in found.tokenizers:
        levels = ", ".join(f"{name} {level.name}" for name, level in sorted(one.levels.items()))
        sys.stdout.write(
            f"{one.tokenizer_hash}\n  run {one.run!r}, {one.vocabulary_size} ids, "
            f"{one.file_bytes} bytes, idle for {one.idle_seconds:.0f} s, content "
            f"{one.content[:16]}; {levels or 'no teacher'}\n"
        )
    sys.stdout.write(f"{len(found.tokenizers)} of {found.total} registrations\n")
    return 0


def run_drop(arguments: argparse.Namespace) -> int:
    """Raises ConfigurationError where there is nothing to drop, and what
    ``TeacherClient.drop_tokenizer`` raises."""
    with _client(arguments) as client:
        dropped = client.drop_tokenizer(arguments.tokenizer_hash, timeout=arguments.timeout)
    if not dropped:
        raise ConfigurationError(
            "the run has registered no such tokenizer",
            where=arguments.tokenizer_hash,
            fix="see `teacher-server tokenizers list`, and name the run (--run) where the "
            "server asks for no credentials",
        )
    sys.stdout.write("dropped\n")
    return 0


def _client(arguments: argparse.Namespace) -> TeacherClient:
    from teacher_proto.client import TeacherClient

    own = credentials(arguments, with_token=True)
    return TeacherClient(arguments.address, run=arguments.run_name, credentials=own)


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigurationError for a tokenizer or a text that cannot be read."""
    from teacher_server.realign.compare import SAMPLE, as_json, as_text, compare
    from teacher_server.realign.pair.cache import TableCache
    from teacher_server.realign.pair.vocabulary import Vocabulary, read_vocabulary

    files = {name: _file(name) for name in (arguments.student, arguments.teacher)}
    differ = _difference(arguments.student, arguments.teacher, files)

    def vocabulary(name: str) -> Vocabulary:
        try:
            return read_vocabulary(files[name])
        except ConfigurationError as error:
            how = f"; the two: {differ}" if differ else "; both have one fingerprint"
            raise ConfigurationError(error.what + how, where=name, fix=error.fix) from error

    student, teacher = vocabulary(arguments.student), vocabulary(arguments.teacher)
    text = SAMPLE.encode() if arguments.text is None else _text(arguments.text)
    try:
        found = replace(compare(student, teacher, text, TableCache(None)), difference=differ)
    except ValueError as error:
        raise ConfigurationError(
            str(error), where="--text", fix="choose another text, or another tokenizer"
        ) from error
    report = json.dumps(as_json(found), indent=2) + "\n" if arguments.json else as_text(found)
    sys.stdout.write(report)
    return 0


def _text(path: Path) -> bytes:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"it cannot be read: {error.strerror}", where=str(path), fix="give a text file"
        ) from error
    if not text:
        raise ConfigurationError("it is empty", where=str(path), fix="give a text file")
    return text


def _file(name: str) -> bytes | str:
    """The content of a tokenizer.json: of a file as it is, of a model as it is loaded."""
    if Path(name).is_file():
        return Path(name).read_bytes()
    from teacher_server.teachers.tokenizer import load_backend

    return load_backend(name)


def _difference(student: str, teacher: str, files: Mapping[str, bytes | str]) -> str:
    """How the two differ, the student's first; empty where they have one fingerprint."""
    from teacher_proto.fingerprint.parts import content_of
    from teacher_proto.fingerprint.relation import difference

    from teacher_server.teachers.tokenizer import TextTokenizer

    def encodings() -> tuple[Encode, Encode]:
        return TextTokenizer(files[student]).encode_each, TextTokenizer(files[teacher]).encode_each

    for name in (student, teacher):
        try:
            tokenizer_hash(files[name])
        except ConfigurationError as error:
            raise ConfigurationError(error.what, where=name, fix=error.fix) from error
    found = difference(content_of(files[student]), content_of(files[teacher]), encodings)
    return "" if found is None else found.describe()
