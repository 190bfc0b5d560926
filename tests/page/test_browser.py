"""The page over a server, in a real browser."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.page import sequence_of_reply

from tests.page.conftest import Looking, address, problems
from tests.page.documents import HOSTILE
from tests.server.processes import Program

pytestmark = pytest.mark.browser

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
Open = Callable[..., Looking]
EXAMPLE = "The capital of France is Paris."
# What makes a page wider than its window.
WIDER = """[...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
  .map((e) => e.outerHTML.slice(0, 120))
  .filter(() => document.documentElement.scrollWidth > innerWidth)"""
SCRIPTS = "שלום مرحبا नमस्ते 你好 🙂‍↔️ é\u200b\u202e end\ttab\n  two"


def example(look: Open, program: Program, **context: Any) -> Looking:
    """The page after a click on its example."""
    found = look(address(program), **context)
    found.page.get_by_role("button", name="Show an example").click()
    found.page.locator(".strip .tok").first.wait_for()
    return found


def ask(found: Looking, *, prompt: str, response: str, **choices: str) -> None:
    page = found.page
    page.locator("#state").filter(has_text="version").wait_for()
    page.get_by_label("Text", exact=True).check()
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Response, whose tokens are looked at").fill(response)
    for name, value in choices.items():
        page.locator(f"[name={name}]").select_option(value)
    page.get_by_role("button", name="Look", exact=True).click()


def strip_text(found: Looking) -> str:
    """The tokens as the page shows them, white space as it is."""
    found.page.get_by_label("Show white space").uncheck()
    return "".join(found.page.locator(".strip .tok").all_text_contents())


def test_one_click_shows_what_the_teacher_thinks(look: Open, program: Program, axe: str) -> None:
    found = example(look, program)
    page = found.page
    assert strip_text(found) == EXAMPLE
    details = page.locator(".details")
    assert details.locator("tr.own").count() == 1  # the token itself is marked
    assert details.locator("tr.beyond").count() == 1  # and the mass beyond K is there
    assert page.locator(".chart").get_attribute("aria-label")
    page.get_by_text("Prompt, as it was read").click()
    assert "<|im_start|>user" in page.locator("pre.prompt").inner_text()
    assert problems(found, axe) == []
    found.shot("example-light")


def test_the_keyboard_the_mouse_and_a_finger_choose_a_token(look: Open, program: Program) -> None:
    page = example(look, program).page
    strip, heading = page.locator(".strip"), page.locator(".details h3")
    tokens = strip.locator(".tok")
    last = tokens.count()
    strip.focus()
    for key, place in (("Home", 1), ("ArrowRight", 2), ("End", last), ("ArrowLeft", last - 1)):
        page.keyboard.press(key)
        heading.filter(has_text=f"{place} of {last}").wait_for()
        assert strip.get_attribute("aria-activedescendant") == tokens.nth(place - 1).get_attribute(
            "id"
        )
    tokens.nth(3).hover()
    heading.filter(has_text=f"4 of {last}").wait_for()
    page.locator("h1").hover()  # what was chosen by the keys comes back
    heading.filter(has_text=f"{last - 1} of {last}").wait_for()
    small = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}
    phone = example(look, program, **small).page
    phone.locator(".strip .tok").nth(2).tap()
    phone.locator(".details h3").filter(has_text=f"3 of {last}").wait_for()
    assert phone.evaluate(WIDER) == []


def test_it_is_readable_dark_narrow_and_without_motion(
    look: Open, program: Program, axe: str
) -> None:
    found = example(
        look,
        program,
        color_scheme="dark",
        reduced_motion="reduce",
        viewport={"width": 390, "height": 800},
    )
    assert problems(found, axe) == []
    fill = found.page.locator(".fill").first
    assert fill.evaluate("e => getComputedStyle(e).transitionDuration") == "0s"
    found.shot("example-dark-narrow")


def test_the_page_and_python_make_the_same_of_a_reply(look: Open, program: Program) -> None:
    page = look(address(program)).page
    body = {
        "prompt": {"token_ids": [1, 2]},
        "continuations": [{"token_ids": [4, 5, 300]}],
        "top_k": 3,
        "temperature": 1.0,
        "returns": {"log_tail": True},
        "teacher": "default",
    }
    reply, sequence = page.evaluate(
        """async (body) => {
            const { askJson } = await import(`${location.origin}/page/app/ask.js`);
            const { sequenceOfReply } = await import(`${location.origin}/page/app/reply.js`);
            const reply = await askJson("/v1/score", { body });
            return [reply, sequenceOfReply("a", reply, 0, [-1, -2, -3])];
        }""",
        body,
    )
    assert sequence == sequence_of_reply("a", reply, student=[-1, -2, -3])


def test_text_of_every_script_and_markup_is_shown_and_never_run(
    look: Open, program: Program
) -> None:
    found = look(address(program))
    page = found.page
    title = page.title()
    ask(found, prompt=HOSTILE, response=f"{HOSTILE}{SCRIPTS}", teacher="default")
    page.locator(".strip .tok").first.wait_for()
    shown = strip_text(found)
    assert shown.startswith(HOSTILE)
    assert shown.endswith(" end\ttab\n  two")
    assert page.title() == title
    assert page.locator(".strip img, .details img, .strip script").count() == 0
    found.shot("hostile")


def test_a_link_holds_the_whole_question(look: Open, program: Program) -> None:
    found = look(address(program))
    ask(found, prompt=SCRIPTS, response="some words", teacher="other", compare="teacher")
    found.page.locator(".strip .tok").first.wait_for()
    link = found.page.url
    asked: list[str] = []
    again = look("about:blank")
    again.page.on("request", lambda request: asked.append(request.url))
    again.page.goto(link)
    again.page.get_by_text("The link's question is in the form").wait_for()
    again.page.locator("#state").filter(has_text="version").wait_for()
    assert not [url for url in asked if url.endswith(("/v1/score", "/v1/render"))]
    again.page.get_by_role("button", name="Look", exact=True).click()
    again.page.locator(".strip .tok").first.wait_for()
    assert again.page.get_by_label("Prompt", exact=True).input_value() == SCRIPTS
    assert again.page.locator("[name=teacher]").input_value() == "other"
    broken = look(link[:-5]).page
    broken.locator("#problem").filter(has_text="not whole").wait_for()
    again.page.get_by_label("Rollout or rows").check()  # what is pasted stands in no link
    assert again.page.get_by_role("button", name="Copy a link").is_hidden()


def test_rows_that_came_are_shown_where_their_prompt_is_refused(
    look: Open, program: Program
) -> None:
    found = look(address(program))
    found.expected.append("status of 429")
    refusal = {"reason": "RUN_QUEUE_FULL", "what": "no room", "where": "run", "fix": "wait"}
    found.page.route(
        "**/v1/render",
        lambda route: route.fulfill(status=429, body=json.dumps({"error": refusal})),
    )
    ask(found, prompt="a", response="b c", teacher="default")
    found.page.locator(".strip .tok").first.wait_for()
    found.page.locator("#problem").filter(has_text="RUN_QUEUE_FULL").wait_for()


def test_what_is_copied_ends_no_string(look: Open, program: Program) -> None:
    page = look(address(program)).page
    server = "http://a'\n; touch /tmp/x; '\u2028\""
    curl, python, buttons = page.evaluate(
        """async (server) => {
            const at = `${location.origin}/page/view/sources.js`;
            const { asCurl, asPython, sourcesView } = await import(at);
            const shown = (server) => [...sourcesView({ server, request: {} })
              .querySelectorAll("button")].map((button) => button.textContent);
            return [asCurl(server, { a: "'" }), asPython(server, { a: "'" }),
              [shown(server), shown("http://a:1/prefix"), shown("http://a\\n")]];
        }""",
        server,
    )
    words = shlex.split(curl.replace("\\\n", " "))
    assert words[-1] == f"{server}/v1/score"
    texts = [n.value for n in ast.walk(ast.parse(python)) if isinstance(n, ast.Constant)]
    assert f"{server}/v1/score" in texts
    assert ["Copy as curl" in one for one in buttons] == [False, True, False]


def test_two_teachers_stand_side_by_side(look: Open, program: Program, axe: str) -> None:
    found = look(address(program))
    page = found.page
    page.locator("#state").filter(has_text="version").wait_for()
    page.locator("[name=compare]").select_option("teacher")
    page.locator("[name=other_teacher]").select_option("other")
    ask(found, prompt="a", response=EXAMPLE, teacher="default")
    page.get_by_role("tab", name="Side by side").click()
    page.locator(".bars.two").wait_for()
    assert "can be compared" in page.locator("[role=tabpanel]").inner_text()
    assert problems(found, axe) == []
    found.shot("two-teachers")


def test_two_renderings_of_a_prompt_show_where_they_differ(look: Open, program: Program) -> None:
    found = example(look, program)
    page = found.page
    page.locator("[name=compare]").select_option("prompt")
    other = "<|im_start|>user\nWhat is the capitol of France?<|im_end|>\n<|im_start|>assistant\n"
    page.locator("#other_prompt").fill(other)
    page.get_by_role("button", name="Look", exact=True).click()
    page.get_by_role("tab", name="Side by side").click()
    marks = page.locator("mark")
    assert marks.all_text_contents() == ["a", "o"]
    assert page.locator(".strip .tok").count() == page.locator(".strip .tok:not(.unknown)").count()
    found.shot("two-renderings")


def test_a_student_s_tokens_stand_over_the_teacher_s(
    look: Open, program: Program, other_tokenizer_model_dir: Path, axe: str
) -> None:
    found = example(look, program)
    page = found.page
    page.locator("#tokenizer-file").set_input_files(other_tokenizer_model_dir / "tokenizer.json")
    expect(page.locator("[name=tokenizer]")).not_to_have_value("")
    page.get_by_role("button", name="Look", exact=True).click()
    page.get_by_role("tab", name="Segmentations").click()
    ours, theirs = (page.locator(f".{name}").all_text_contents() for name in ("ours", "theirs"))
    assert "".join(theirs).replace("·", " ") == EXAMPLE
    assert len(ours) == len(theirs) > 3
    page.locator(".chunks .seg.c-masked, .chunks .seg.c-coarse").first.click()
    reason = page.locator(".details .facts").inner_text()
    assert "Reason" in reason
    assert "Class" in reason
    assert "Why positions are masked or coarse" in page.locator("[role=tabpanel]").inner_text()
    assert problems(found, axe) == []
    found.shot("segmentations")


def test_what_is_pasted_is_drawn_or_asked_about(look: Open, program: Program) -> None:
    found = look(address(program))
    page = found.page
    page.locator("#state").filter(has_text="version").wait_for()
    page.get_by_label("Rollout or rows").check()
    send = page.get_by_role("button", name="Look", exact=True)
    rows = {"name": "r", "tokens": [{"id": 1, "text": HOSTILE, "log_prob": -1, "loss": 0.5}]}
    page.locator("#rollout").fill(json.dumps({"format": "lsm-rows/1", "sequences": [rows]}))
    send.click()
    expect(page.get_by_label("Colour by")).to_have_value("loss")
    kept = {
        "ids": [7, 8],
        "texts": ["e", " f"],
        "teacher_log_probs": [-1.0, None],
        "student_log_probs": [-0.5, -2.0],
        "losses": [0.1, None],
        "top_ids": [[7], [9]],
        "top_texts": [["e"], ["g"]],
        "top_log_probs": [[-1.0], [-0.2]],
        "prompt": "kept",
        "text": "e f",
        "place": 3,
    }
    page.locator("#rollout").fill("\n".join([json.dumps(kept)] * 2))
    send.click()
    found.select("Sequence").wait_for()
    assert strip_text(found) == "e f"
    assert page.locator(".details .facts").get_by_text("Gap").count() == 1
    page.locator("#rollout").fill(json.dumps({"prompt": "a b", "text": " c d"}))
    send.click()
    expect(page.locator(".strip")).to_have_text("·c·d")
    page.get_by_label("Rollout or rows").check()
    for wrong, said in (("{", "no JSON"), ("[1]", "paste a document"), ("null", "paste")):
        page.locator("#rollout").fill(wrong)
        send.click()
        page.locator("#problem").filter(has_text=said).wait_for()
    assert page.locator(".strip .tok").count() > 0  # what was there stays


def test_the_live_panel_shows_runs_and_refusals(look: Open, program: Program, axe: str) -> None:
    found = look(address(program))
    found.expected.append("status of 400")
    page = found.page
    ask(found, prompt="a", response="b", teacher="default")
    page.locator(".strip .tok").first.wait_for()
    page.locator("[name=top_k]").fill("100000")
    page.get_by_role("button", name="Look", exact=True).click()
    page.locator("#problem").filter(has_text="top_k").wait_for()
    page.locator(".live > summary").click()
    live = page.locator(".live")
    live.get_by_role("rowheader", name="http", exact=True).wait_for()
    for name in ("default", "other", "http"):
        assert live.get_by_role("rowheader", name=name, exact=True).count() == 1
    assert "Refused since the server started" in live.inner_text()
    assert "None." not in live.inner_text()
    assert problems(found, axe) == []
    found.shot("live")


@pytest.mark.parametrize("language", ["curl", "Python"])
def test_what_is_copied_runs(look: Open, program: Program, language: str) -> None:
    found = look(address(program))
    ask(found, prompt=f"it's {SCRIPTS} $HOME `x` \\", response='"quoted"', teacher="default")
    found.page.get_by_role("tab", name="Copy").click()
    found.page.get_by_role("button", name=f"Copy as {language}").click()
    text = found.page.locator(".source").input_value()
    command = ["bash", "-c", text] if language == "curl" else [sys.executable, "-c", text]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | {"LC_ALL": "C.UTF-8"}
    )
    assert done.returncode == 0, done.stderr
    if language == "curl":
        (result,) = json.loads(done.stdout)["results"]
        assert "".join(row["token"] for row in result["rows"]) == '"quoted"'
    else:
        assert len(done.stdout.splitlines()) > 1


def test_docs_tries_the_interface_out(look: Open, program: Program) -> None:
    found = look(f"{address(program)}/docs")
    page = found.page
    score = page.locator(".opblock").filter(has_text="/v1/score")
    score.locator(".opblock-summary-control").click()
    score.get_by_role("button", name="Execute").click()
    status = score.locator(".live-responses-table .response-col_status").last
    status.filter(has_text="200").wait_for()
    assert "sampled_log_prob" in score.locator(".live-responses-table").inner_text()
    found.shot("docs")
