"""Every reason of an error is in docs/errors.md, and every one that travels in service.proto."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from teacher_proto import errors
from teacher_proto.client.credentials import AUTHORIZATION, RUN
from teacher_proto.status import DETAILS_KEY, DOMAIN, TABLE

from teacher_server.http.errors import status_of
from tests.contract.reasons import reasons_in

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "proto" / "teacher_proto"
SERVER = ROOT / "teacher_server"
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
SERVICE = (PACKAGE / "v1" / "service.proto").read_text(encoding="utf-8")
NAMES = r"[A-Z][A-Z0-9_]+"

# Of the server's code, and never the answer to a call: of the commands, of the start, of
# logs and metrics.
NEVER_SENT = {"NOT_SERVING", "SCORES_DISAGREE", "SELF_SCORE_FAILED", "READY", "CANCELLED"}
# Of HTTP alone; over gRPC PROMPT_TOO_LONG is inside a reply.
OF_HTTP = {"MALFORMED_JSON", "UNSUPPORTED_MEDIA_TYPE", "NOT_FOUND", "METHOD_NOT_ALLOWED", "HTTP"}
OF_HTTP |= {"CLIENT_CLOSED", "MALFORMED_HTTP", "HEADERS_TOO_LARGE", "TOO_MANY_CONNECTIONS"}
IN_A_REPLY = {"PROMPT_TOO_LONG"}
# What a server raises of these classes has a reason of its own.
NEVER_PLAIN = {"CONTRACT_MISMATCH", "PERMISSION_DENIED", "CONFIGURATION", "RUNTIME"}
NEVER_PLAIN |= {"POISONED_REPLY"}


def by_status() -> dict[str, list[str]]:
    """gRPC code -> the reasons that service.proto lists for it."""
    text = re.sub(r"\n//\s*", "\n", SERVICE)
    block = text[text.index("docs/errors.md says when") : text.index("The same port has")]
    parts = re.split(rf"\n({NAMES}): ", block)[1:]
    found = zip(parts[::2], parts[1::2], strict=True)
    return {code: re.findall(NAMES, listed.partition(";")[0]) for code, listed in found}


def in_the_page() -> dict[str, tuple[str, str]]:
    """Reason of the service -> (gRPC, HTTP) in docs/errors.md."""
    table = PAGE.partition("### Reasons of the service")[2].partition("\n### ")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()[2:]]
    found = [(row[1], (row[2], row[3])) for row in rows if len(row) > 4]
    return {reason: both for names, both in found for reason in re.findall(NAMES, names)}


def test_every_reason_in_the_code_is_in_the_page() -> None:
    used = reasons_in(PACKAGE, SERVER, ROOT / "student_trainer")
    named = set(re.findall(rf"`({NAMES})`", PAGE))
    assert {reason: str(one.path) for reason, one in used.items() if reason not in named} == {
        "READY": str(SERVER / "lifecycle.py")  # of a refusal that a ready server does not give
    }
    listed = re.findall(NAMES, " ".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)))
    tables = {one for one in listed if not one.endswith("Error")}
    assert tables - set(used) == set(), "reasons that no code gives"
    assert len(listed) == len(set(listed)), "a reason is listed twice"


def test_every_reason_that_a_server_sends_is_in_the_proto_file() -> None:
    used = set(reasons_in(SERVER, PACKAGE / "codec", PACKAGE / "status.py"))
    used |= {kind.default_reason for _, kind in TABLE}
    used -= NEVER_SENT | OF_HTTP | IN_A_REPLY | NEVER_PLAIN
    used -= {"MESSAGE_TOO_LARGE", "UNKNOWN_CALL", "OLDER_SERVER"}  # the client's
    listed = [reason for reasons in by_status().values() for reason in reasons]
    assert sorted(listed) == sorted(used)
    assert all(reason in SERVICE for reason in IN_A_REPLY)


def test_both_lists_give_a_reason_the_same_status() -> None:
    found = in_the_page()
    statuses = by_status()
    for code, reasons in statuses.items():
        assert {reason: found[reason][0] for reason in reasons} == dict.fromkeys(reasons, code)
    both = {reason for reasons in statuses.values() for reason in reasons}
    assert set(found) == both | OF_HTTP | IN_A_REPLY


@pytest.mark.parametrize(("code", "reasons"), by_status().items(), ids=lambda one: str(one))
def test_the_status_is_that_of_the_errors_class(code: str, reasons: list[str]) -> None:
    used = reasons_in(SERVER, PACKAGE / "errors.py", PACKAGE / "status.py")
    for reason in reasons:
        assert reason in used, f"{reason} is given by no code"
        kinds = [vars(errors)[name] for name in used[reason].kinds & set(vars(errors))]
        codes = {next(row.name for row, kind in TABLE if issubclass(one, kind)) for one in kinds}
        assert not codes or code in codes, (reason, codes)


def test_http_gives_each_the_status_of_the_page() -> None:
    kinds = {row.name: kind for row, kind in reversed(TABLE)}
    found = {
        reason: str(status_of(kinds[code]("what", reason=reason)))
        for code, reasons in by_status().items()
        for reason in reasons
    }
    assert found == {reason: in_the_page()[reason][1] for reason in found}


def test_the_proto_file_names_what_a_call_carries() -> None:
    for name in (AUTHORIZATION, RUN, DETAILS_KEY, DOMAIN, "traceparent"):
        assert name in SERVICE


def test_every_method_lists_its_statuses() -> None:
    codes = set(by_status())
    methods = re.findall(r"((?:  //.*\n)*)  rpc (\w+)\(", SERVICE)
    assert {name for _, name in methods} >= {"GetTeacher", "Score", "Render", "RegisterTokenizer"}
    for comment, name in methods:
        stated = comment.partition("Statuses: ")[2]
        assert stated, f"{name} does not say how it ends"
        listed = set(re.findall(rf"{NAMES}_{NAMES}|[A-Z]{{6,}}", stated))
        assert "all of the above" in stated or listed <= codes, name
