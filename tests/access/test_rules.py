"""The rules alone: who is known, what a run may do, what a call counts for."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from teacher_proto.errors import ConfigurationError, ForbiddenError, UnauthenticatedError

from teacher_server.access import rules
from teacher_server.access.rules import authenticate, authorize, may_use, policy_of, run_of
from teacher_server.access.runs import merged, parse_runs
from teacher_server.queue.policy import RunPolicy
from tests.access.pki import ALICE, BOB, OLD, RUNS

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CREDENTIALS = parse_runs(RUNS, "file")
ALICE_S = authenticate(CREDENTIALS, [f"Bearer {ALICE}"], (), NOW)
BOB_S = authenticate(CREDENTIALS, [f"bearer {BOB}"], (), NOW)


def test_a_token_brings_its_run_s_policy() -> None:
    assert ALICE_S.policy == RunPolicy("alice", 2.0, 1, 60000)
    assert ALICE_S.teachers is None
    assert BOB_S.policy == RunPolicy("bob")
    assert BOB_S.teachers == {"default"}
    assert authenticate(CREDENTIALS, (), ["x", "alice.trainers.test"], NOW) == ALICE_S


@pytest.mark.parametrize(
    ("authorization", "names"),
    [
        ([], []),
        ([], ["bob.trainers.test"]),
        (["Bearer "], []),
        (["Bearer"], []),
        ([ALICE], []),
        ([f"Basic {ALICE}"], []),
        ([f"Bearer {ALICE}", f"Bearer {ALICE}"], []),
        ([f"Bearer {ALICE}x"], []),
        ([f"Bearer {ALICE[:-1]}"], []),
        ([f"Bearer {ALICE.upper()}"], []),
        (["Bearer \xe9"], []),
        ([f"Bearer {hashlib.sha256(ALICE.encode()).hexdigest()}"], []),
        ([f"Bearer {BOB}"], ["alice.trainers.test"]),
        (["Bearer wrong-token-0123456789"], ["alice.trainers.test"]),
    ],
)
def test_nobody_else_is_known(authorization: list[str], names: list[str]) -> None:
    with pytest.raises(UnauthenticatedError) as found:
        authenticate(CREDENTIALS, authorization, names, NOW)
    assert ALICE not in str(found.value)


def test_a_token_ends_at_its_time() -> None:
    shown = [f"Bearer {OLD}"]
    end = datetime(2020, 1, 1, tzinfo=UTC)
    before = authenticate(CREDENTIALS, shown, (), end - timedelta(microseconds=1))
    assert before.run == "alice"
    with pytest.raises(UnauthenticatedError) as found:
        authenticate(CREDENTIALS, shown, (), end)
    assert found.value.reason == "TOKEN_EXPIRED"


def test_a_token_is_compared_with_every_one(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def counting(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return hmac.compare_digest(one, other)

    spy = type("hmac", (), {"compare_digest": staticmethod(counting)})
    monkeypatch.setattr(rules, "hmac", spy)
    for token in (ALICE, BOB):
        compared.clear()
        authenticate(CREDENTIALS, [f"Bearer {token}"], (), NOW)
        assert compared == [entry.digest for entry in CREDENTIALS.tokens]


def test_teachers_are_those_allowed() -> None:
    authorize(BOB_S, "default")
    authorize(ALICE_S, "other")
    authorize(None, "other")
    assert may_use(BOB_S, "default")
    assert not may_use(BOB_S, "other")
    with pytest.raises(ForbiddenError) as found:
        authorize(BOB_S, "other")
    assert found.value.reason == "TEACHER_FORBIDDEN"


def test_no_run_is_charged_for_another() -> None:
    assert run_of(ALICE_S, "alice") == run_of(ALICE_S, "") == "alice"
    assert run_of(None, "anything") == "anything"
    for other in ("bob", "Alice", "alice ", "alic"):
        with pytest.raises(ForbiddenError) as found:
            run_of(ALICE_S, other)
        assert found.value.reason == "RUN_MISMATCH"
    configured = {"alice": RunPolicy("alice", weight=9.0)}
    assert policy_of(ALICE_S, "alice", configured) is ALICE_S.policy
    assert policy_of(None, "x", configured) == RunPolicy("x")
    assert policy_of(None, "alice", configured) is configured["alice"]


def test_the_documented_file_is_one_the_server_takes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "access.md").read_text()
    text = page.split("```toml\n")[1].split("```")[0]
    found = parse_runs(text, "docs")
    assert [token.principal.run for token in found.tokens] == ["math-7b"] * 2 + ["prometheus"]
    assert found.tokens[0].principal.teachers == {"math", "code"}
    assert found.tokens[2].principal.teachers == frozenset()
    assert set(found.certificates) == {"math-7b.trainers.example"}


SECRET = "very-secret-0123456789"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("runs = 1", "runs"),
        (f'{SECRET} = "alice"', "unknown key"),
        (f'[runs.a]\n{SECRET} = "alice"', "unknown key"),
        (f'[[runs.a.tokens]]\n{SECRET} = "alice"', "unknown key"),
        (f'[[runs.a.tokens]]\ntoken = "{SECRET}"\nsha256 = "{"0" * 64}"', "one of token"),
        ("[[runs.a.tokens]]\nexpires = 2020-01-01T00:00:00Z", "one of token"),
        (f'[[runs.a.tokens]]\nsha256 = "{SECRET}"', "sha256"),
        (f'[[runs.a.tokens]]\ntoken = "{SECRET} x"', "does not hold a token"),
        ('[[runs.a.tokens]]\ntoken = "short"', "shorter than"),
        (f'[[runs.a.tokens]]\ntoken = "{SECRET}"\nexpires = 2020-01-01T00:00:00', "timezone"),
        (f'[[runs.a.tokens]]\ntoken = "{SECRET}"\nexpires = 2020-01-01', "expires"),
        (f'[runs]\na.tokens = [{{token="{SECRET}"}}]\nb.tokens = [{{token="{SECRET}"}}]', "twice"),
        ("[runs]\na.certificates = ['x']\nb.certificates = ['x']", "twice"),
        ("[runs.a]\nweight = 0", "weight"),
        ("[runs.a]\nweight = nan", "weight"),
        ("[runs.a]\ntokens_per_minute = 0", "tokens_per_minute"),
        ("[runs.'']", "name"),
        (f'x = "{SECRET}', "not TOML"),
        (f"{SECRET}", "not TOML"),
    ],
)
def test_a_wrong_file_is_told_without_its_secrets(text: str, part: str) -> None:
    with pytest.raises(ConfigurationError) as found:
        parse_runs(text, "file")
    assert part in str(found.value)
    assert SECRET not in str(found.value)
    assert SECRET not in repr(found.value)


def test_hashed_and_plain_tokens_are_the_same() -> None:
    hashed = f'[[runs.alice.tokens]]\nsha256 = "{hashlib.sha256(ALICE.encode()).hexdigest()}"'
    assert authenticate(parse_runs(hashed, "f"), [f"Bearer {ALICE}"], (), NOW).run == "alice"
    assert ALICE not in repr(CREDENTIALS)


def test_two_sources_never_share_a_run_or_a_token() -> None:
    other = parse_runs(f'[[runs.carol.tokens]]\ntoken = "{SECRET}"', "env")
    both = merged(CREDENTIALS, other)
    assert authenticate(both, [f"Bearer {SECRET}"], (), NOW).run == "carol"
    assert authenticate(both, [f"Bearer {ALICE}"], (), NOW).run == "alice"
    for text in (
        f'[[runs.bob.tokens]]\ntoken = "{SECRET}"',
        f'[[runs.carol.tokens]]\ntoken = "{ALICE}"',
        "[runs.carol]\ncertificates = ['alice.trainers.test']",
    ):
        with pytest.raises(ConfigurationError):
            merged(CREDENTIALS, parse_runs(text, "env"))
