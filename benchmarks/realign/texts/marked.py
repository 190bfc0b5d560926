"""Text with marks of its own: LaTeX, calls of tools, special tokens that are written out."""

from __future__ import annotations

import random
from json import dumps as to_json

# Of several vocabularies; none holds U+2581, which byte-fallback tokenizers take for a space.
SPECIALS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<|eot_id|>", "<think>",
    "</think>", "[INST]", "[/INST]", "<|begin_of_text|>", "<|start_header_id|>", "<bos>",
)  # fmt: skip


def latex(tuning: bool) -> str:
    """Formulas, sections and sentences around them."""
    draw = random.Random(59 if tuning else 61)
    greek = ("zeta", "eta", "kappa", "sigma") if tuning else ("alpha", "gamma", "theta", "lambda")
    pieces = []
    for _ in range(1500):
        a, b, n = draw.choice(greek), draw.choice(greek), draw.randint(1, 99)
        if tuning:
            forms = (
                f"\\[ \\{a}({n}) \\geq \\prod_{{k={n}}}^{{\\infty}} \\{b}_k \\]\n",
                f"Suppose that $\\{a} = {n}\\{b}$; see \\eqref{{eq:{a}{n}}}.\n",
                f"\\begin{{itemize}}\n  \\item $\\{a}^{{{n}}}$\n\\end{{itemize}}\n",
            )
        else:
            forms = (
                f"\\begin{{equation}}\n  \\{a}_{{{n}}} = \\frac{{\\{b}^{{2}}}}{{{n}}} + x_i\n"
                "\\end{equation}\n",
                f"Let $\\{a} \\in \\mathbb{{R}}^{n}$ and $\\{b}(x) = x^{{{n}}}$. Then it holds.\n",
                f"\\section{{On $\\{a}$-rings}}\\label{{sec:{a}{n}}}\n",
                f"It becomes \\emph{{clear}} that \\(\\int_0^{{{n}}} \\{a}(t)\\,dt = \\{b}\\).\n",
            )
        pieces.append(draw.choice(forms))
    return "".join(pieces)


def calls(tuning: bool) -> str:
    """Calls of tools as JSON between two tags, with a sentence or an answer behind them."""
    draw = random.Random(67 if tuning else 71)
    if tuning:
        names, keys = ("read_file", "list_folder"), ("path", "pattern")
        values = ("src/main.py", "*.toml", "README")
    else:
        names, keys = ("get_weather", "search", "run_code"), ("city", "query", "code")
        values = ("Paris", "Berlin 12", "print(1)")
    pieces = []
    for _ in range(900):
        arguments = {draw.choice(keys): draw.choice(values), "n": draw.randint(0, 300)}
        call = to_json({"name": draw.choice(names), "arguments": arguments})
        after = draw.choice(
            ("", "I will call it again.\n", f"The result is {draw.randint(0, 99)}.\n")
        )
        pieces.append(f"<tool_call>\n{call}\n</tool_call>\n{after}")
    return "".join(pieces)


def specials(tuning: bool) -> str:
    """Text about special tokens, which are written out in it."""
    draw = random.Random(73 if tuning else 79)
    words = ("stop", "begin", "eof") if tuning else ("end", "endo", "eos", "user")
    pieces = []
    for _ in range(1800):
        a, b, word = draw.choice(SPECIALS), draw.choice(SPECIALS), draw.choice(words)
        if tuning:
            forms = (
                f"After {a} comes {b}, never '{word}'.\n",
                f'{word} = ["{a}", "{b}"]\n',
                f"{a}{word}{b}\n",
            )
        else:
            forms = (
                f"The token {a} ends a turn and {b} begins one.\n",
                f'`{a}` is not ``{b}``, it is written "{a}".\n',
                f"{a}{word}\n{b}\n",
                f"print('{a}' + \"{b}\")  # {word}\n",
            )
        pieces.append(draw.choice(forms))
    return "".join(pieces)
