"""``teacher-server tokenizers compare``: two tokenizers side by side, no model needed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from teacher_proto.errors import ConfigurationError
from teacher_proto.fingerprint.probe import Encode
from teacher_proto.tokenizer_hash import tokenizer_hash


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    tokenizers = commands.add_parser("tokenizers", help="compare tokenizers")
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
    from teacher_proto.fingerprint.relation import difference

    from teacher_server.teachers.tokenizer import TextTokenizer

    def encodings() -> tuple[Encode, Encode]:
        return TextTokenizer(files[student]).encode_each, TextTokenizer(files[teacher]).encode_each

    for name in (student, teacher):
        try:
            tokenizer_hash(files[name])
        except ConfigurationError as error:
            raise ConfigurationError(error.what, where=name, fix=error.fix) from error
    found = difference(files[student], files[teacher], encodings)
    return "" if found is None else found.describe()
