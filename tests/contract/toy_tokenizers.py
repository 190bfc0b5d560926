"""Small tokenizer.json of every kind that the tokenizers library reads, and edits of them:
those that change no id, and those that do, each with a text that shows it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

Document = dict[str, Any]
Edit = Callable[[Document], Any]

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
ALPHABET = [*map(chr, _PRINTABLE), *(chr(256 + place) for place in range(len(_OTHERS)))]
GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MERGES = [["t", "h"], ["th", "e"], ["e", "Ġ"], ["Ġ", "a"], ["i", "n"], ["in", "g"], ["1", "2"]]


def added(number: int, content: str, **flags: bool) -> Document:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **plain, "special": True, **flags}


def document(model: Document, **parts: Any) -> Document:
    nothing = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    return {"version": "1.0", **nothing, "added_tokens": [], "model": model, **parts}


def bpe(tokens: list[str], merges: list[list[str]], **changes: Any) -> Document:
    tokens = list(dict.fromkeys([*tokens, *("".join(pair) for pair in merges)]))
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": merges,
        **changes,
    }


def split(pattern: Document, behavior: str = "Isolated", invert: bool = False) -> Document:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def byte_level(**changes: Any) -> Document:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True} | changes


def sequence(*parts: Document) -> Document:
    return {"type": "Sequence", "pretokenizers": list(parts)}


BYTE_LEVEL = document(
    bpe([*ALPHABET, "Ġxyz"], MERGES),
    added_tokens=[added(264, "<|end|>"), added(265, "<think>", special=False)],
    normalizer={"type": "NFC"},
    pre_tokenizer=byte_level(use_regex=True),
)
BYTE_FALLBACK = document(
    bpe(
        ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdehilnorstuw"],
        [["▁", "a"], ["t", "h"], ["th", "e"], ["▁", "the"], ["▁", "▁"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    ),
    added_tokens=[added(0, "<unk>")],
    normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    pre_tokenizer=split({"String": " "}, "MergedWithPrevious"),
)
FEW_TOKENS = document(
    bpe(["?", *"abcdefghij "], [["a", "b"], ["ab", "c"], [" ", "a"]], unk_token="?"),
)
WORD_PIECE = document(
    {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 20,
        "vocab": {
            token: index
            for index, token in enumerate(
                [
                    "[UNK]",
                    *"abcdefghiknorst",
                    *("the", "##ing", "cafe", "A", "你", "好", ",", "é"),
                    *(f"##{character}" for character in "abcdefghinorst"),
                ]
            )
        },
    },
    added_tokens=[added(0, "[UNK]")],
    normalizer={
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    pre_tokenizer={"type": "BertPreTokenizer"},
)
UNIGRAM = document(
    {
        "type": "Unigram",
        "unk_id": 0,
        "byte_fallback": False,
        "vocab": [
            ["<unk>", 0.0],
            ["▁", -3.4635426998138428],
            ["a", -2.5],
            ["b", -2.25],
            ["ab", -4.5],
            ["▁a", -3],
            ["c", -7.1],
        ],
    },
    pre_tokenizer={
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "always",
        "split": True,
    },
)
WORD_LEVEL = document(
    {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "a": 1, "b": 2, ",": 3, "1": 4}},
    normalizer={"type": "Lowercase"},
    pre_tokenizer=sequence(
        {"type": "Whitespace"},
        {"type": "Punctuation", "behavior": "Isolated"},
        {"type": "Digits", "individual_digits": True},
    ),
)
TOYS = {
    "byte_level": BYTE_LEVEL,
    "byte_fallback": BYTE_FALLBACK,
    "few_tokens": FEW_TOKENS,
    "word_piece": WORD_PIECE,
    "unigram": UNIGRAM,
    "word_level": WORD_LEVEL,
}


def edited(base: Document, edit: Edit) -> Document:
    changed = copy.deepcopy(base)
    edit(changed)
    return changed


def model(**changes: Any) -> Edit:
    return lambda d: d["model"].update(changes)


def part(name: str, value: Any) -> Edit:
    return lambda d: d.update({name: value})


def token(index: int, **changes: Any) -> Edit:
    return lambda d: d["added_tokens"][index].update(changes)


def leave_out(*path: str) -> Edit:
    def edit(d: Document) -> None:
        for name in path[:-1]:
            d = d[name]
        del d[path[-1]]

    return edit


def reordered(d: Document) -> None:
    d["model"]["vocab"] = dict(reversed(d["model"]["vocab"].items()))
    d["model"] = dict(reversed(d["model"].items()))


def without_normalizer(*flags: bool) -> Edit:
    def edit(d: Document) -> None:
        d["normalizer"] = None
        for one, flag in zip(d["added_tokens"], flags, strict=True):
            one["normalized"] = flag

    return edit


def both(*edits: Edit) -> Edit:
    def edit(d: Document) -> None:
        for one in edits:
            one(d)

    return edit


NFC = {"type": "NFC"}
OLD_METASPACE = {"type": "Metaspace", "replacement": "▁", "str_rep": "▁", "add_prefix_space": True}
# (toy, what is changed in it, the edit, where the edit starts from)
NO_ID_CHANGES: list[tuple[str, str, Edit, Edit | None]] = [
    ("byte_level", "trim_offsets", part("pre_tokenizer", byte_level(trim_offsets=False)), None),
    ("byte_level", "use_regex is left out", leave_out("pre_tokenizer", "use_regex"), None),
    ("byte_level", "Sequence of one", part("pre_tokenizer", sequence(byte_level())), None),
    ("byte_level", "nested", part("pre_tokenizer", sequence(sequence(byte_level()))), None),
    (
        "byte_level",
        "Sequence of one normalizer",
        part("normalizer", {"type": "Sequence", "normalizers": [NFC]}),
        None,
    ),
    (
        "byte_level",
        "empty Sequence",
        part("normalizer", {"type": "Sequence", "normalizers": []}),
        part("normalizer", None),
    ),
    (
        "byte_level",
        "a normalizer that does nothing",
        part(
            "normalizer",
            {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Strip", "strip_left": False, "strip_right": False},
                    NFC,
                ],
            },
        ),
        None,
    ),
    (
        "byte_level",
        "ByteLevel's own expression in a Split",
        part(
            "pre_tokenizer",
            sequence(split({"Regex": GPT2_REGEX}), byte_level(use_regex=False)),
        ),
        None,
    ),
    (
        "byte_level",
        "what is not between the matches is removed, of an expression that matches everything",
        part(
            "pre_tokenizer",
            sequence(split({"Regex": QWEN_REGEX}, "Removed", True), byte_level(use_regex=False)),
        ),
        part(
            "pre_tokenizer",
            sequence(split({"Regex": QWEN_REGEX}), byte_level(use_regex=False)),
        ),
    ),
    (
        "byte_level",
        "a literal expression",
        part("pre_tokenizer", sequence(split({"Regex": "e t"}), byte_level())),
        part("pre_tokenizer", sequence(split({"String": "e t"}), byte_level())),
    ),
    ("byte_level", "special", token(0, special=False), None),
    ("byte_level", "not special", token(1, special=True), None),
    ("byte_level", "order", reordered, None),
    ("byte_level", "normalized", without_normalizer(True, True), without_normalizer(False, False)),
    ("byte_level", "an id that the file states", token(1, id=900), None),
    ("byte_level", "twice", lambda d: d["added_tokens"].append(d["added_tokens"][0]), None),
    ("byte_level", "nameless", lambda d: d["added_tokens"].append(added(900, "")), None),
    ("byte_level", "merges as text", model(merges=[" ".join(pair) for pair in MERGES]), None),
    ("byte_level", "a merge twice", model(merges=[MERGES[4], *MERGES]), None),
    ("byte_level", "dropout 0", model(dropout=0.0), None),
    ("byte_level", "affixes", model(continuing_subword_prefix="", end_of_word_suffix=""), None),
    ("byte_level", "ignore_merges is left out", leave_out("model", "ignore_merges"), None),
    ("byte_level", "dropout is left out", leave_out("model", "dropout"), None),
    ("byte_level", "type is left out", leave_out("model", "type"), None),
    ("byte_level", "nothing is unknown", model(unk_token="a", fuse_unk=True), None),
    ("byte_level", "nothing falls back", model(byte_fallback=True), None),
    ("byte_level", "post-processor", part("post_processor", byte_level()), None),
    ("byte_level", "decoder", part("decoder", byte_level()), None),
    ("byte_fallback", "unk_token", model(unk_token=None), None),
    ("byte_fallback", "fuse_unk", model(fuse_unk=False), None),
    ("byte_fallback", "a Split at what is gone", part("pre_tokenizer", None), None),
    (
        "byte_fallback",
        "Metaspace as it was once written",
        part("pre_tokenizer", OLD_METASPACE),
        part(
            "pre_tokenizer",
            {
                "type": "Metaspace",
                "replacement": "▁",
                "prepend_scheme": "always",
                "split": True,
            },
        ),
    ),
    (
        "byte_fallback",
        "a literal expression is replaced",
        part("normalizer", {"type": "Replace", "pattern": {"Regex": " "}, "content": "▁"}),
        None,
    ),
    (
        "few_tokens",
        "no unk_token",
        model(fuse_unk=True, unk_token=None),
        model(unk_token=None),
    ),
    ("few_tokens", "type is left out", leave_out("model", "type"), None),
    (
        "word_piece",
        "strip_accents as lowercase",
        lambda d: d["normalizer"].update(strip_accents=True),
        None,
    ),
    ("word_piece", "strip_accents is left out", leave_out("normalizer", "strip_accents"), None),
    ("word_piece", "type is left out", leave_out("model", "type"), None),
    ("unigram", "byte_fallback is left out", leave_out("model", "byte_fallback"), None),
    ("unigram", "type is left out", leave_out("model", "type"), None),
    (
        "unigram",
        "the last bit of a score",
        lambda d: d["model"]["vocab"][1].__setitem__(1, -3.463542699813843),
        None,
    ),
    ("unigram", "Metaspace's defaults", part("pre_tokenizer", OLD_METASPACE), None),
    (
        "unigram",
        "other defaults of Metaspace",
        part("pre_tokenizer", {"type": "Metaspace", "replacement": "▁"}),
        None,
    ),
    (
        "word_level",
        "Punctuation's default",
        lambda d: leave_out("behavior")(d["pre_tokenizer"]["pretokenizers"][1]),
        None,
    ),
    ("word_level", "type is left out", leave_out("model", "type"), None),
    (
        "word_level",
        "FixedLength's default",
        part("pre_tokenizer", {"type": "FixedLength"}),
        part("pre_tokenizer", {"type": "FixedLength", "length": 5}),
    ),
]


def _metaspace(**changes: Any) -> Edit:
    return lambda d: d["pre_tokenizer"].update(changes)


def _marked_metaspace(scheme: str) -> Edit:
    return both(_metaspace(prepend_scheme=scheme), part("added_tokens", [added(7, "<m>")]))


def _bert(**changes: Any) -> Edit:
    return lambda d: d["normalizer"].update(changes)


# (toy, what is changed in it, the edit, where the edit starts from, a text that shows it)
ID_CHANGES: list[tuple[str, str, Edit, Edit | None, str]] = [
    ("byte_level", "lstrip", token(0, lstrip=True), None, "a <|end|>"),
    ("byte_level", "rstrip", token(0, rstrip=True), None, "<|end|> a"),
    ("byte_level", "single_word", token(0, single_word=True), None, "a<|end|>"),
    # ">" and U+0338 are one character after NFC.
    ("byte_level", "normalized", token(1, normalized=True), None, "<think>\u0338"),
    (
        "byte_level",
        "normalized, of one of two that overlap",
        both(without_normalizer(True, False), token(0, content="a<think>")),
        both(without_normalizer(False, False), token(0, content="a<think>")),
        "a<think>",
    ),
    ("byte_level", "content", token(0, content="<|stop|>"), None, "<|end|>"),
    ("byte_level", "order of the file", lambda d: d["added_tokens"].reverse(), None, "<|end|>"),
    (
        "byte_level",
        "of two with one id the last",
        lambda d: d["added_tokens"].reverse(),
        # 264 is the id of "z", and the next one after as many as there are tokens.
        both(
            lambda d: d["model"]["vocab"].update(z=264),
            part("added_tokens", [added(264, "z"), added(264, "<think>")]),
        ),
        "<think>",
    ),
    (
        "unigram",
        "order of the file",
        lambda d: d["added_tokens"].reverse(),
        part("added_tokens", [added(2, "a"), added(7, "<m>"), added(8, "<n>")]),
        "<m>",
    ),
    ("byte_level", "no added token", part("added_tokens", []), None, "<|end|>"),
    ("byte_level", "no normalizer", part("normalizer", None), None, "e\u0301"),
    ("byte_level", "NFKC", part("normalizer", {"type": "NFKC"}), None, "ﬁ"),
    (
        "byte_level",
        "add_prefix_space",
        part("pre_tokenizer", byte_level(add_prefix_space=True)),
        None,
        "a",
    ),
    (
        "byte_level",
        "use_regex",
        part("pre_tokenizer", byte_level(use_regex=False)),
        None,
        "e a",
    ),
    (
        "byte_level",
        "expression",
        part("pre_tokenizer", sequence(split({"Regex": "h"}), byte_level())),
        None,
        "the",
    ),
    (
        "byte_level",
        "behavior",
        part("pre_tokenizer", sequence(split({"String": "e"}, "Removed"), byte_level())),
        part("pre_tokenizer", sequence(split({"String": "e"}), byte_level())),
        "the",
    ),
    (
        "byte_level",
        "invert",
        part("pre_tokenizer", sequence(split({"String": "e"}, "Removed", True), byte_level())),
        part("pre_tokenizer", sequence(split({"String": "e"}, "Removed"), byte_level())),
        "the",
    ),
    (
        "byte_level",
        "removed between the matches of an expression that leaves something out",
        part("pre_tokenizer", sequence(split({"Regex": r"\p{L}+"}, "Removed", True), byte_level())),
        part("pre_tokenizer", sequence(split({"Regex": r"\p{L}+"}), byte_level())),
        "the 1",
    ),
    (
        "byte_level",
        "order of merges",
        model(merges=[MERGES[2], *MERGES[:2], *MERGES[3:]]),
        part("pre_tokenizer", byte_level(use_regex=False)),
        "the a",
    ),
    ("byte_level", "fewer merges", model(merges=MERGES[:1]), None, "the"),
    (
        "byte_level",
        "ids",
        lambda d: d["model"]["vocab"].update({"a": 1, '"': 0} | {"!": d["model"]["vocab"]["a"]}),
        None,
        "a",
    ),
    ("byte_level", "ignore_merges", model(ignore_merges=True), None, " xyz"),
    ("byte_level", "dropout", model(dropout=1.0), None, "the"),
    ("byte_level", "suffix", model(end_of_word_suffix="g"), None, "in"),
    ("byte_fallback", "byte_fallback", model(byte_fallback=False), None, "你"),
    (
        "byte_fallback",
        "what a space becomes",
        lambda d: d["normalizer"].update(content="_"),
        None,
        "a the",
    ),
    (
        "byte_fallback",
        "a Split at what is there",
        part("pre_tokenizer", split({"String": "▁"}, "MergedWithPrevious")),
        None,
        "a the",
    ),
    ("few_tokens", "unk_token", model(unk_token="a"), None, "x"),
    ("few_tokens", "fuse_unk", model(fuse_unk=True), None, "xx"),
    ("few_tokens", "prefix", model(continuing_subword_prefix="d"), model(merges=[]), "ae"),
    ("word_piece", "lowercase", _bert(lowercase=False), None, "The"),
    ("word_piece", "strip_accents", _bert(strip_accents=False), None, "é"),
    ("word_piece", "handle_chinese_chars", _bert(handle_chinese_chars=False), None, "你好"),
    ("word_piece", "clean_text", _bert(clean_text=False), None, "a\x01"),
    ("word_piece", "longest word", model(max_input_chars_per_word=3), None, "cafe"),
    ("word_piece", "prefix", model(continuing_subword_prefix="#"), None, "thing"),
    ("unigram", "score", lambda d: d["model"]["vocab"][5].__setitem__(1, -9.0), None, "ab"),
    ("unigram", "order", lambda d: d["model"]["vocab"].reverse(), None, "b"),
    ("unigram", "unk_id", model(unk_id=1), None, "x"),
    ("unigram", "never prepends", _metaspace(prepend_scheme="never"), None, "a"),
    (
        "unigram",
        "prepends at the beginning alone",
        _marked_metaspace("first"),
        _marked_metaspace("always"),
        "<m>b",
    ),
    (
        "unigram",
        "split",
        _metaspace(split=False),
        model(vocab=[["a▁", -0.1], ["a", -1], ["▁", -1]]),
        "a a",
    ),
    ("unigram", "replacement", _metaspace(replacement="_"), None, "a b"),
    ("word_level", "normalizer", part("normalizer", None), None, "A"),
    (
        "word_level",
        "individual_digits",
        lambda d: d["pre_tokenizer"]["pretokenizers"][2].update(individual_digits=False),
        None,
        "11",
    ),
    (
        "word_level",
        "Punctuation's behavior",
        lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(behavior="Removed"),
        None,
        ",",
    ),
    (
        "word_level",
        "length",
        part("pre_tokenizer", {"type": "FixedLength", "length": 1}),
        part("pre_tokenizer", {"type": "FixedLength", "length": 5}),
        "ab",
    ),
]
