"""Numbers, and what stands between them: digits, indentation, tables, aligned code."""

from __future__ import annotations

import random
from json import dumps as to_json


def digits(tuning: bool) -> str:
    draw = random.Random(5 if tuning else 17)
    lines = []
    for _ in range(1500):
        a, b, c = draw.randint(2, 4999), draw.randint(2, 999), draw.randint(2, 99)
        if tuning:
            lines.append(
                f"First we add {a} and {b}, which gives {a} + {b} = {a + b}. Then {a + b} * {c} = "
                f"{(a + b) * c}, so the total is ${(a + b) * c / 100:.2f}. The answer is "
                f"{(a + b) * c}.\n"
            )
        else:
            lines.append(
                f"Each of the {c} boxes holds {b} screws, so there are {c} x {b} = {b * c} screws. "
                f"Taking away {a} leaves {b * c} - {a} = {b * c - a}; that is "
                f"{(b * c - a) / c:.1f} for each box.\n"
            )
    return "".join(lines)


def json(tuning: bool) -> str:
    """Indented documents whose lines often begin with a number."""
    draw = random.Random(23 if tuning else 29)
    documents = []
    for number in range(400):
        if tuning:
            document: dict[str, object] = {
                "id": number,
                "scores": [draw.randint(0, 999) for _ in range(draw.randint(2, 5))],
                "box": {
                    "from": [draw.randint(0, 80), draw.randint(0, 80)],
                    "open": number % 3 == 0,
                },
            }
        else:
            document = {
                "order": {"lines": [[draw.randint(1, 40), draw.randint(100, 9999)] for _ in "ab"]},
                "weights": [round(draw.uniform(0, 3), 2) for _ in range(draw.randint(1, 4))],
                "paid": number % 2 == 0,
            }
        documents.append(to_json(document, indent=2 if number % 4 == 0 else 4))
    return "\n".join(documents)


def table(tuning: bool) -> str:
    """Columns of numbers and words, aligned with spaces, sometimes with tabs."""
    draw = random.Random(31 if tuning else 37)
    names = (
        ("north", "east", "south", "west") if tuning else ("apples", "pears", "plums", "cherries")
    )
    lines = []
    for number in range(1500):
        name, count, price = draw.choice(names), draw.randint(1, 4000), draw.uniform(0, 900)
        if tuning:
            lines.append(f"{name:<10}{count:>8}{price:>10.2f}   {draw.choice(names)}")
        else:
            lines.append(f"{number % 40:>4}  {name:<12} {count:>6}  {price:>9.1f}")
        if number % 12 == 0:
            lines.append(f"{'total':<10}\t\t{draw.randint(100, 99999)}")
    return "\n".join(lines)


def aligned(tuning: bool) -> str:
    """Code whose assignments, tables of constants and comments are aligned."""
    draw = random.Random(41 if tuning else 43)
    names = ("width", "height", "depth") if tuning else ("left", "bottom", "scale")
    blocks = []
    for _ in range(300):
        if tuning:
            gap = " " * draw.randint(2, 6)
            lines = [
                f"    {draw.choice(names):<8} = {draw.randint(0, 640):>5}{gap}# mm"
                for _ in range(4)
            ]
            lines += ["    sizes = ["]
            lines += [f"        {draw.randint(0, 99)}, {draw.randint(0, 99)}," for _ in range(3)]
            lines += ["    ]", ""]
        else:
            lines = [f"static const int {draw.choice(names)}[] = {{"]
            lines += [
                "".join(f"  {draw.randint(0, 999):>4}," for _ in range(4)) + f"  /* {row} */"
                for row in range(3)
            ]
            lines += ["};", f"#define {draw.choice(names).upper():<12}  {draw.randint(1, 512)}", ""]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def layout(tuning: bool) -> str:
    """Tabs, line ends of both kinds, wide spaces: before digits, words, marks and Chinese."""
    draw = random.Random(47 if tuning else 53)
    words = ("alpha", "beta", "two words") if tuning else ("open", "closed", "not yet")
    wide = "\u4f60\u597d" if tuning else "\u5168\u90e8"
    lines = []
    for _ in range(1500):
        word, number = draw.choice(words), draw.randint(0, 9999)
        if tuning:
            lines += [f"\t\t{number},\n", f"\t({word})\t\t\t{number % 10}\n", f"\t\t\t{word}\r\n"]
            lines += [f"{word}  \r\n  {number}\r\n", f"{wide}\u00a0\u00a0{number}   {wide}\n"]
        else:
            lines += [
                f"\t\t\t{number}\t({word})\n",
                f"\t\t{word}\t\t{number},\n",
                f"\n\n  {number}\n",
            ]
            lines += [
                f"{number}\u3000\u3000{word}   {wide}\n",
                f"  {word}\r\n\r\n   {number % 10}\r\n",
            ]
    picked = [draw.choice(lines) for _ in range(4000)]
    return "".join(picked)
