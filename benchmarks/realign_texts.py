"""Texts of the realignment benchmark: what a stand-in teacher learns, and what is realigned.

All of it is on the machine already (the standard library's documentation and code) or
made here.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """``learnt`` is what the n-gram teacher counts; ``held_out`` continues in its manner."""

    name: str
    learnt: str
    held_out: str


def texts(size: int) -> list[Text]:
    """Each text's held-out part has about ``size`` characters."""
    makers: dict[str, Callable[[], str]] = {
        "prose": _prose,
        "code": _code,
        "digits": _digits,
        "chinese": _chinese,
    }
    made = []
    for name, make in makers.items():
        text = make()
        made.append(Text(name, text[:-size], text[-size:]))
    return made


def _prose() -> str:
    from pydoc_data.topics import topics

    chosen = [topics[name] for name in sorted(topics) if len(topics[name]) > 3000]
    words = "\n\n".join(chosen)
    return " ".join(line.strip() for line in words.splitlines() if line.strip())[:240_000]


def _code() -> str:
    import argparse
    import statistics
    import textwrap

    return "".join(inspect.getsource(module) for module in (textwrap, statistics, argparse))


def _digits() -> str:
    draw = random.Random(5)
    lines = []
    for _ in range(1500):
        a, b, c = draw.randint(2, 4999), draw.randint(2, 999), draw.randint(2, 99)
        lines.append(
            f"First we add {a} and {b}, which gives {a} + {b} = {a + b}. Then {a + b} * {c} = "
            f"{(a + b) * c}, so the total is ${(a + b) * c / 100:.2f}. The answer is "
            f"{(a + b) * c}.\n"
        )
    return "".join(lines)


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


def _chinese() -> str:
    draw = random.Random(6)
    sentences = _CHINESE.split("|")
    return "".join(draw.choice(sentences) for _ in range(2500))
