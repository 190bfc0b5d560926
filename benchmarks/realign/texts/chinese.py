"""Chinese: sentences made of parts, and prose that people translated."""

from __future__ import annotations

import gzip
import hashlib
import random
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from teacher_proto.program.files import atomic_folder

from student_trainer.quickstart.cache import cache_dir

# Manual pages in Chinese, of Debian 12, and the SHA-256 of the archive.
PACKAGE = "manpages-zh=1.6.4.0-1"
SHA256 = "81bae29495f6445db290e3f329f1203eb19b651c2a7ea165b74ebdc853a32ac1"
# Of the second set and of the first.
SECTIONS, TUNING_SECTIONS = ("man5", "man7", "man8"), ("man1",)
LEAST_CHINESE = 0.4


def translated(tuning: bool) -> str:
    """Paragraphs of manual pages.

    Raises:
        RuntimeError: they are not cached and cannot be fetched.
    """
    folder = _pages() / "usr" / "share" / "man" / "zh_CN"
    paragraphs: dict[str, None] = {}
    for section in TUNING_SECTIONS if tuning else SECTIONS:
        for page in sorted((folder / section).glob("*.gz")):
            if page.is_symlink():
                continue
            source = gzip.decompress(page.read_bytes()).decode("utf-8", "ignore")
            paragraphs.update(dict.fromkeys(_paragraphs(source)))
    text = "\n".join(paragraphs)
    return text[:200_000]


def _paragraphs(source: str) -> list[str]:
    """The prose of a page, without its markup."""
    lines = [line for line in source.splitlines() if line[:1] not in (".", "'")]
    plain = re.sub(r"\\f(?:\[\w*\]|.)|\\[&/|]", "", "\n".join(lines))
    plain = re.sub(r"\\\((?:en|em|hy)|\\-", "-", plain).replace("\\e", "\\")
    return [line.strip() for line in plain.splitlines() if _is_chinese(line)]


def _is_chinese(line: str) -> bool:
    characters = [letter for letter in line if not letter.isspace()]
    wide = sum("\u4e00" <= letter <= "\u9fff" for letter in characters)
    return len(characters) >= 16 and wide >= LEAST_CHINESE * len(characters)


def _pages() -> Path:
    """The unpacked archive, from the cache."""
    folder = cache_dir() / "texts" / SHA256
    if folder.is_dir():
        return folder
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise _cannot(f"{tool} is not installed")
    with tempfile.TemporaryDirectory() as scratch:
        fetch = ["apt-get", "download", PACKAGE]
        done = subprocess.run(fetch, cwd=scratch, capture_output=True, timeout=240)
        archives = list(Path(scratch).glob("*.deb"))
        if done.returncode or not archives:
            raise _cannot(done.stderr.decode()[-200:].strip())
        if hashlib.sha256(archives[0].read_bytes()).hexdigest() != SHA256:
            raise _cannot("the archive is another one than the texts were chosen from")
        try:
            with atomic_folder(folder) as work:
                subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(work)], check=True)
        except OSError:
            # Another process may have unpacked it meanwhile.
            if not folder.is_dir():
                raise
    return folder


def _cannot(reason: str) -> RuntimeError:
    return RuntimeError(
        f"no Chinese prose: {PACKAGE} is not cached and cannot be fetched: {reason}. It takes "
        "Debian 12 with `apt-get update` done; or leave the text out with --texts"
    )


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


def made_up(tuning: bool) -> str:
    draw = random.Random(6 if tuning else 19)
    if tuning:
        sentences = _CHINESE.split("|")
        return "".join(draw.choice(sentences) for _ in range(2500))
    parts = [part.split("|") for part in _PARTS]
    return "".join(draw.choice(part) for _ in range(2500) for part in parts)
