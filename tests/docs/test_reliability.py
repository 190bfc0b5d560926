"""docs/reliability.md names proofs and tests that exist, each with a negative control."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tests.docs.test_architecture import cells

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
ROWS = [cells(line) for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
RESULTS = ROOT / "benchmarks" / "results" / "soak.json"


def functions(path: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name: node for node in tree.body if isinstance(node, kinds)}


def called(path: str, function: str) -> set[str]:
    """Methods that a function calls, and those of the functions of its module that it calls."""
    found: set[str] = set()
    known = functions(path)
    seen, waiting = set(), [function]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.walk(known[name]):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                found.add(node.func.attr)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                waiting += [node.func.id] if node.func.id in known else []
    return found


def test_the_25_proofs_are_listed() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, 26))
    assert all(all(row) and len(row) == 6 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[f"{int(row[0]):02d}" for row in ROWS])
def test_a_proof_has_a_quick_form_a_full_form_and_a_control(row: list[str]) -> None:
    number, quick, full = int(row[0]), row[3].strip("`"), row[4].strip("`")
    path, _, name = quick.partition("::")
    assert name in functions(path), quick
    (proof,) = [found for found in functions(full) if f"test_proof_{number:02d}_" in found]
    assert {"figure", "control", "settle"} <= called(full, proof)


def test_the_results_are_of_these_proofs() -> None:
    if not RESULTS.exists():
        pytest.skip("no proof has been run in full length")
    document = json.loads(RESULTS.read_text())
    known = {f"proof_{number:02d}" for number in range(1, 26)}
    assert {key[:8] for key in document["figures"]} <= known
    assert set(document["proofs"]) <= known
    for key, about in document["proofs"].items():
        holds = bool(document["figures"][key])
        assert holds == (not about["missed"] and all(about["controls"].values())), key
