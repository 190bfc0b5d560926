"""The results as tables in Markdown and as a picture, from the document alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from student_trainer.study.parts.written import markdown_table, new_figure, save_figure
from student_trainer.study.repetition.probe import direction


def shown(repetitions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The repetitions that a table shows: 0, 1, 2, 4, 8, ... and the last."""
    last = len(repetitions) - 1
    chosen = {0, last} | {2**power for power in range(last.bit_length())}
    return [repetitions[place] for place in sorted(chosen) if place <= last]


def table(document: Mapping[str, Any]) -> str:
    """One table a case, and how many cases each objective pushes up at the end."""
    parts = []
    for case in document["cases"]:
        arms = list(case["repetitions"][0].get("signals", {}))
        header = ["repeats", "teacher log q", "teacher entropy"]
        header += ["student log pi", *arms] if arms else []
        rows = []
        for one in shown(case["repetitions"]):
            cells = [str(one["repeats"]), f"{one['teacher_log_prob']:.3f}"]
            cells.append(f"{one['teacher_entropy']:.3f}")
            if arms:
                cells.append(f"{one['student_log_prob']:.3f}")
                cells += [f"{one['signals'][arm]['push']:+.2g}" for arm in arms]
            rows.append(cells)
        parts.append(
            f"`{case['case']}`, {case['loop']!r} ({case['loop_tokens']} tokens), means over its "
            f"tokens:\n\n{markdown_table(header, rows)}\n"
        )
    found = document["figures"].get("direction_at_the_end")
    if found:
        rows = [
            [arm, *(str(counts[way]) for way in ("up", "down", "none"))]
            for arm, counts in found.items()
        ]
        parts.append("Cases by direction of the mean push at the last repetition:\n\n")
        parts.append(markdown_table(["objective", "up", "down", "none"], rows))
    return "".join(parts).rstrip("\n") + "\n"


def figures(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is quoted: the teacher's log-probability and entropy at the first and at the last
    repetition, means over cases, and how many cases each objective pushes up or down at last."""
    found: dict[str, Any] = {}
    for name in ("teacher_log_prob", "teacher_entropy", "student_log_prob", "student_entropy"):
        if name in cases[0]["repetitions"][0]:
            for when, place in (("first", 0), ("last", -1)):
                values = [case["repetitions"][place][name] for case in cases]
                found[f"{name}_{when}"] = sum(values) / len(values)
    last = [case["repetitions"][-1].get("signals", {}) for case in cases]
    if last[0]:
        found["direction_at_the_end"] = {
            arm: {
                way: sum(direction(signals[arm]["push"]) == way for signals in last)
                for way in ("up", "down", "none")
            }
            for arm in last[0]
        }
    return found


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Writes the picture: log-probability and entropy by repetition, and the mean push over
    cases of each objective."""
    cases = document["cases"]
    arms = list(cases[0]["repetitions"][0].get("signals", {}))
    figure, axes = new_figure("repetition", 3 if arms else 2, 16 if arms else 11, 4.2)
    repeats = [one["repeats"] for one in cases[0]["repetitions"]]
    for number, case in enumerate(cases):
        for panel, name in zip(axes, ("log_prob", "entropy"), strict=False):
            for side, style in (("teacher", "-"), ("student", "--")):
                values = [one.get(f"{side}_{name}") for one in case["repetitions"]]
                if values[0] is not None:
                    label = f"{case['case']}, {side}"
                    panel.plot(repeats, values, style, color=f"C{number}", label=label)
    axes[0].set(xlabel="repeats", ylabel="log-probability of the loop, nats a token")
    axes[1].set(xlabel="repeats", ylabel="entropy, nats a token")
    axes[0].legend(fontsize=7)
    if arms:
        for arm in arms:
            of_cases = [[one["signals"][arm]["push"] for one in c["repetitions"]] for c in cases]
            mean = [sum(values) / len(values) for values in zip(*of_cases, strict=True)]
            axes[2].plot(repeats, mean, label=arm)
        axes[2].axhline(0, color="grey", linewidth=0.8)
        axes[2].set(xlabel="repeats", ylabel="push on log p of the loop, mean over cases")
        axes[2].set_yscale("symlog", linthresh=1e-3)
        axes[2].legend(fontsize=7)
    save_figure(figure, path)
