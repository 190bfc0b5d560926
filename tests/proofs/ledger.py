"""What a proof measured, and whether it holds: one entry each in benchmarks/results/soak.json.

Figures are ``proof_NN`` (1 or 0) and ``proof_NN_NAME``. A proof holds when each of its
figures is within its bound and each of its negative controls failed as it must. A run of
some proofs replaces their own entries alone.

``SOAK_TRIAL=1`` takes a twentieth of every count and time and writes nothing: it shows that
the programs work. ``SOAK_MINUTES`` is the length of the long runs (proofs 21 and 24).
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import RESULTS, commit, machine

PATH = RESULTS / "soak.json"
TRIAL = os.environ.get("SOAK_TRIAL") == "1"
MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
LEAST = 2


def count(full: int) -> int:
    """So many, or in a trial a twentieth."""
    return max(LEAST, full // 20) if TRIAL else full


def seconds(full: float) -> float:
    """So long, or in a trial a twentieth and at least two seconds."""
    return max(2.0, full / 20) if TRIAL else full


@dataclass
class Proof:
    """One proof while it runs.

    Attributes:
        number: its row in docs/reliability.md.
        missed: bounds that do not hold, and controls that did not fail, in words.
    """

    number: int
    figures: dict[str, float] = field(default_factory=dict)
    controls: dict[str, bool] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    settled: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> str:
        return f"proof_{self.number:02d}"

    def figure(
        self,
        name: str,
        value: float,
        *,
        exactly: float | None = None,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Notes a number and compares it with its bounds."""
        self.figures[f"{self.key}_{name}"] = value
        outside = within(value, exactly=exactly, at_most=at_most, at_least=at_least)
        if outside:
            self.missed.append(f"{name} is {value:.6g}, {outside}")
        self.say(f"{name} = {value:.6g}{'' if not outside else '  MISSED: ' + outside}")

    def control(self, name: str, *, failed: bool) -> None:
        """Notes whether the proof fails where the guard is broken on purpose."""
        self.controls[name] = failed
        if not failed:
            self.missed.append(f"the negative control does not fail: {name}")
        self.say(f"negative control, {name}: {'fails as it must' if failed else 'DOES NOT FAIL'}")

    def say(self, text: str) -> None:
        line = f"{self.key} {time.monotonic() - self.began:6.1f} s  {text}"
        print(line, file=sys.__stdout__, flush=True)  # also where a test captures its output

    def settle(self) -> None:
        """The end of a proof: raises AssertionError unless it holds."""
        assert self.figures, "a proof measures something"
        assert self.controls, "a proof has a negative control"
        self.settled = True
        assert not self.missed, "; ".join(self.missed)

    def write(self, failure: str = "") -> None:
        """Puts the entry of this proof into the file, in place of an earlier one."""
        holds = self.settled and not self.missed
        shown = {self.key: float(holds), **self.figures}
        self.say(f"{'holds' if holds else 'DOES NOT HOLD: ' + (failure or '; '.join(self.missed))}")
        if TRIAL:
            return
        document = json.loads(PATH.read_text()) if PATH.exists() else {"figures": {}, "proofs": {}}
        others = {k: v for k, v in document["figures"].items() if not k.startswith(self.key)}
        proofs = document["proofs"] | {
            self.key: {
                "seconds": round(time.monotonic() - self.began, 1),
                "missed": self.missed or ([failure] if failure else []),
                "controls": self.controls,
                "commit": commit(),
                "machine": machine(),
                "details": self.details,
            }
        }
        figures = dict(sorted((others | shown).items()))
        PATH.write_text(
            json.dumps({"figures": figures, "proofs": dict(sorted(proofs.items()))}, indent=2)
            + "\n"
        )


def within(
    value: float,
    *,
    exactly: float | None = None,
    at_most: float | None = None,
    at_least: float | None = None,
) -> str:
    """Empty, or which bound ``value`` is outside of."""
    if value != value:
        return "which is no number"
    if exactly is not None and value != exactly:
        return f"not {exactly:g}"
    if at_most is not None and value > at_most:
        return f"more than {at_most:g}"
    if at_least is not None and value < at_least:
        return f"less than {at_least:g}"
    return ""
