"""Characters of several bytes: emoji that are joined, and text from right to left."""

from __future__ import annotations

import random

JOINED = (
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f469\U0001f3fd\u200d\U0001f680",
    "\U0001f3f3\ufe0f\u200d\U0001f308", "\u2764\ufe0f\u200d\U0001f525",
    "\U0001f926\U0001f3fb\u200d\u2642\ufe0f", "\U0001f44d\U0001f3ff", "\U0001f602",
    "\U0001f1eb\U0001f1f7", "\U0001f1e9\U0001f1ea", "\U0001f9d1\u200d\U0001f4bb", "\u2600\ufe0f",
)  # fmt: skip
ARABIC = (
    "في البدء كان|السلام عليكم ورحمة الله|كتاب جديد عن التاريخ|المدينة القديمة|يوم جميل|قال الرجل",
    "ذهب الولد إلى المدرسة|الماء بارد|هذا بيت كبير|من أين أنت|الشمس والقمر|لا أعرف",
)
HEBREW = (
    "שלום עולם|ספר חדש על|העיר העתיקה|יום יפה|אמר האיש|בראשית ברא",
    "הילד הלך לבית הספר|המים קרים|זה בית גדול|מאין אתה|השמש והירח|אינני יודע",
)


def emoji(tuning: bool) -> str:
    """Words and emoji with joiners, variation selectors and skin tones."""
    draw = random.Random(83 if tuning else 89)
    words = (
        ("great", "team", "thanks", "for", "all") if tuning else ("we", "love", "it", "so", "sun")
    )
    pieces = []
    for _ in range(4000):
        mark = draw.choice(("", draw.choice(JOINED)))
        pieces.append(f"{draw.choice(words)} {draw.choice(JOINED)}{mark}")
        pieces.append(draw.choice((" ", "! ", ", ", "\n")))
    return "".join(pieces)


def right_to_left(tuning: bool) -> str:
    """Arabic and Hebrew with marks and numbers."""
    draw = random.Random(97 if tuning else 101)
    phrases = [*ARABIC[tuning].split("|"), *HEBREW[tuning].split("|")]
    marks = (" ", ", ", ". ", "؟ ", "، ", " 12 ", "\n")
    return "".join(draw.choice(phrases) + draw.choice(marks) for _ in range(3500))
