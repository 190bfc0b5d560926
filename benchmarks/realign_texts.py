"""Texts of the realignment benchmark: what the n-gram teacher learns, and what is realigned.

All of it is on the machine already (the standard library's documentation and code) or
made here. There are two sets with nothing in common: one for choosing settings and for
tests, one for the results that are reported.
"""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """``learnt`` is what the n-gram teacher counts; ``held_out`` continues in its manner."""

    name: str
    learnt: str
    held_out: str


def texts(size: int, *, tuning: bool = False) -> list[Text]:
    """Each text's held-out part has about ``size`` characters."""
    makers: dict[str, Callable[[bool], str]] = {
        "prose": _prose,
        "code": _code,
        "digits": _digits,
        "chinese": _chinese,
        "json": _json,
        "table": _table,
        "aligned": _aligned,
        "layout": _layout,
    }
    made = []
    for name, make in makers.items():
        text = make(tuning)
        made.append(Text(name, text[:-size], text[-size:]))
    return made


def _prose(tuning: bool) -> str:
    from pydoc_data.topics import topics

    chosen = sorted(name for name in topics if len(topics[name]) > 2000)[not tuning :: 2]
    words = "\n\n".join(topics[name] for name in chosen)
    return " ".join(line.strip() for line in words.splitlines() if line.strip())[:240_000]


def _code(tuning: bool) -> str:
    import argparse
    import configparser
    import difflib
    import shlex
    import statistics
    import textwrap

    chosen = (textwrap, statistics, argparse) if tuning else (shlex, difflib, configparser)
    return "".join(inspect.getsource(module) for module in chosen)


def _digits(tuning: bool) -> str:
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


def _json(tuning: bool) -> str:
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
        documents.append(json.dumps(document, indent=2 if number % 4 == 0 else 4))
    return "\n".join(documents)


def _table(tuning: bool) -> str:
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


def _aligned(tuning: bool) -> str:
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


def _layout(tuning: bool) -> str:
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


_CHINESE = """\
春天来了，山上的花都开了，孩子们在院子里放风筝。|老师说，学习一门语言需要耐心，也需要每天练习。|\
北京是中国的首都，有很多古老的建筑和现代的高楼。|他昨天晚上读完了那本书，觉得最后一章写得特别好。|\
如果明天不下雨，我们就去公园散步，然后一起吃午饭。|科学家发现，这种植物在干燥的地方也能生长得很快。|\
妈妈做的饺子很好吃，我每次都要吃十几个😀。|这台机器的温度太高了，请先关掉电源再检查。|\
数学课上，老师让我们计算圆的面积和周长。|图书馆里非常安静，大家都在认真地看书。|\
火车从上海出发，三个小时以后到达南京。|为了保护环境，我们应该少用塑料袋，多骑自行车🚲。|\
医生告诉他要多喝水，早一点睡觉，不要太紧张。|这部电影讲的是一个年轻人离开家乡去寻找梦想的故事。|\
秋天的树叶变成了黄色和红色，风一吹就落下来了🍂。|公司决定明年增加两个新的研究项目，需要更多的工程师。|\
弟弟喜欢画画，他画的大象总是有一个很长的鼻子🐘。|水在零度以下会变成冰，在一百度会变成水蒸气。|\
我们先讨论问题的原因，再考虑怎样解决它。|月亮绕着地球转，地球绕着太阳转。"""


_PARTS = (
    "今天早上|去年冬天|上个星期|每到周末|下班以后|开学那天|刚刚|很久以前|前天下午|放假的时候",
    "我的邻居|那位司机|两个学生|村里的老人|她的妹妹|新来的同事|一群游客|他们全家|我和朋友|经理",
    "在车站|从银行里|在河边|坐地铁|跟同学一起|在厨房里|沿着小路|用手机|冒着大雨|在网上",
    "买了几本旧书|看见一只白猫|谈起了那次旅行|修好了一辆汽车|写完了这份报告|拍了很多照片|等了半个小时|"
    "学会了做面包|找到了丢失的钥匙|听说了这个消息",
    "，心里非常高兴。|，可是没有告诉别人。|，后来才发现弄错了。|，大家都觉得很有意思！|，结果第二天就感冒了。|"
    "，所以回来得很晚。|，你相信吗？|，真是太好了🎉。|，然后给家里打了电话。|，路上一个人也没有。",
)


def _chinese(tuning: bool) -> str:
    draw = random.Random(6 if tuning else 19)
    if tuning:
        sentences = _CHINESE.split("|")
        return "".join(draw.choice(sentences) for _ in range(2500))
    parts = [part.split("|") for part in _PARTS]
    return "".join(draw.choice(part) for _ in range(2500) for part in parts)
