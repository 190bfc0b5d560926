"""schemathesis over a server's OpenAPI document, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
PROGRAM = Path(os.environ.get("SCHEMATHESIS", ROOT / ".venv-schemathesis" / "bin" / "schemathesis"))
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
SECONDS = 900


def statuses(http: str, each: int, seed: int, folder: Path) -> Counter[int] | None:
    """How often each status came of ``each`` requests for every operation of the server at
    ``http`` (host:port), and of those that schemathesis makes of every bound in it; None
    where schemathesis is not installed (make .venv-schemathesis/.installed; `make soak` does).

    A status or a body that the document does not have counts as status 0.
    """
    if not PROGRAM.is_file():
        return None
    command = [str(PROGRAM), "run", f"http://{http}/openapi.json", "--no-color"]
    command += ["--max-examples", str(each), "--seed", str(seed), "--checks", ",".join(CHECKS)]
    command += ["--generation-database", "none", "--report", "ndjson", "--report-dir", str(folder)]
    subprocess.run(command, cwd=folder, capture_output=True, timeout=SECONDS, check=False)
    (report,) = folder.glob("*.ndjson")
    found: Counter[int] = Counter()
    with report.open(encoding="utf-8") as lines:
        for line in lines:
            for status, failed in _answers(json.loads(line)):
                found[status] += 1
                found[0] += failed
    return found


def _answers(event: dict[str, Any]) -> Iterator[tuple[int, bool]]:
    """(status, whether it is none of the document's) of each answer in an event."""
    recorder = event.get("ScenarioFinished", {}).get("recorder", {})
    checks = recorder.get("checks", {})
    for key, one in recorder.get("interactions", {}).items():
        response = one.get("response")
        failed = any(
            check["status"] != "success" and check["name"] != "not_a_server_error"
            for check in checks.get(key, ())
        )
        yield (0, False) if response is None else (response["status_code"], failed)
