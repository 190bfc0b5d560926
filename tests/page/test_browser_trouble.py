"""The page in a browser when something is wrong: tokens, sizes, servers, documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from teacher_proto.page import embedded, make_document, render_offline

from tests.access.pki import ALICE, BOB, OLD
from tests.page.conftest import REQUEST_BYTES, Looking, address, problems
from tests.page.cutting_proxy import cutting
from tests.page.documents import HOSTILE, sequence
from tests.page.test_browser import ask, example
from tests.server.processes import Program, serving

pytestmark = pytest.mark.browser

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
Open = Callable[..., Looking]


def use_token(found: Looking, token: str) -> None:
    found.page.get_by_label("Token of a run").fill(token)
    found.page.get_by_role("button", name="Use it").click()


def test_a_guarded_server_asks_for_a_token_which_stays_in_the_tab(
    look: Open, guarded: Program, axe: str
) -> None:
    found = look(address(guarded))
    found.expected.append("status of 401")
    page = found.page
    problem = page.locator("#problem")
    problem.filter(has_text="UNAUTHENTICATED").wait_for()
    assert problems(found, axe) == []
    found.shot("token")
    for wrong, reason in (("nobody's token", "UNAUTHENTICATED"), (OLD, "TOKEN_EXPIRED")):
        use_token(found, wrong)
        problem.filter(has_text=reason).wait_for()
    use_token(found, ALICE)
    page.locator("#state").filter(has_text="1 teacher").wait_for()
    assert page.locator("#token-form").is_hidden()
    ask(found, prompt="a", response="b")
    page.locator(".strip .tok").first.wait_for()
    page.get_by_role("tab", name="Copy").click()
    for name in ("JSON", "curl", "Python"):
        page.get_by_role("button", name=f"{name}").last.click()
        assert ALICE not in page.locator(".source").input_value()
    assert ALICE not in page.url
    assert ALICE not in page.content()
    assert page.evaluate("[document.cookie, localStorage.length]") == ["", 0]
    other = page.context.new_page()  # another tab knows nothing of it
    other.goto(page.url)
    other.locator("#problem").filter(has_text="UNAUTHENTICATED").wait_for()


def test_docs_asks_for_the_token_too(look: Open, guarded: Program) -> None:
    found = look(f"{address(guarded)}/docs")
    found.expected.append("status of 401")
    use_token(found, BOB)
    score = found.page.locator(".opblock").filter(has_text="/v1/score")
    score.locator(".opblock-summary-control").click()
    score.get_by_role("button", name="Execute").click()
    status = score.locator(".live-responses-table .response-col_status").last
    status.filter(has_text="200").wait_for()
    shown = score.locator(".curl").inner_text()
    assert f"{address(guarded)}/v1/score" in shown
    assert BOB not in found.page.content()


def test_megabytes_are_refused_with_the_limit(
    look: Open, program: Program, guarded: Program
) -> None:
    found = look(address(program))
    found.expected.append("status of 4")
    ask(found, prompt="a", response="b" * 5_000_000, teacher="default")
    found.page.locator("#problem").filter(has_text="limits.max_text_bytes").wait_for()
    ask(found, prompt="a", response="b", teacher="default")
    found.page.locator(".strip .tok").first.wait_for()
    small = look(address(guarded))
    small.expected.append("status of 401")
    use_token(small, ALICE)
    ask(small, prompt="a", response="b" * REQUEST_BYTES)
    small.page.locator("#problem").filter(has_text="limits.max_request_bytes").wait_for()


def test_a_reply_that_is_cut_and_a_server_that_goes_are_told(
    look: Open, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with (
        serving(tmp_path, "--model", str(tiny_model_dir), "--dtype", "float32") as program,
        cutting(program.facts["http_address"]) as proxy,
    ):
        found = look(f"http://{proxy.address}")
        found.expected += ["ERR_", "Failed to load resource"]
        page = found.page
        ask(found, prompt="a", response="b c d")
        page.locator(".strip .tok").first.wait_for()
        proxy.cut_after = 700
        page.get_by_role("button", name="Look", exact=True).click()
        page.locator("#problem").filter(has_text="REPLY_CUT").wait_for()
        proxy.cut_after = None
        page.get_by_role("button", name="Look", exact=True).click()
        expect(page.locator("#problem")).to_be_hidden()
        expect(page.locator("#send")).to_be_enabled()
        program.end()
        proxy.close()
        page.get_by_role("button", name="Look", exact=True).click()
        page.locator("#problem").filter(has_text="NO_ANSWER").wait_for()
        assert page.get_by_label("Prompt", exact=True).input_value() == "a"
        assert page.locator(".strip .tok").count() > 0  # the last rows stay
        found.shot("server-gone")


def test_a_file_shows_4096_hostile_tokens_without_a_server(
    look: Open, tmp_path: Path, axe: str
) -> None:
    rows = sequence("rollout", 4096, k=4)
    twin = {**rows, "name": "twin", "other": {"name": "others", "tokens": rows["tokens"][:9]}}
    file = tmp_path / "rows.html"
    file.write_text(render_offline(make_document([rows, twin], HOSTILE), "Worst rollouts"))
    found = look(file.as_uri())
    page = found.page
    page.locator(".strip").focus()
    page.keyboard.press("End")
    page.locator(".details h3").filter(has_text="4096 of 4096").wait_for()
    assert page.locator("h2").inner_text() == HOSTILE
    shown = page.locator(".strip").text_content()
    for part in (HOSTILE.replace(" ", "·"), "⟨U+202E⟩abc", "⟨U+D800⟩", "·the", "漢"):
        assert part in shown
    page.get_by_label("Show white space").uncheck()
    assert page.locator(".strip img, .strip script").count() == 0
    assert page.title() == "Worst rollouts"
    for name in ("Gap", "Loss", "Coverage", "Surprise"):
        page.get_by_label("Colour by").select_option(
            page.locator("option").filter(has_text=name).first.get_attribute("value")
        )
    page.get_by_role("tab", name="Side by side").click()
    page.locator(".bars.two").wait_for()
    found.select("Sequence").select_option("1")
    page.get_by_role("tab", name="Segmentations").click()
    page.locator(".chunk").first.wait_for()
    assert page.title() == "Worst rollouts"
    assert page.locator("img").count() == 0


def test_an_embedded_page_works_and_reaches_nothing_around_it(look: Open, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    rows = embedded(make_document([sequence("rollout", 20)], "t"), "Rows")
    file.write_text(f"<!doctype html><html lang=en><title>report</title>{rows}</html>")
    page = look(file.as_uri()).page
    page.frame_locator("iframe").locator(".strip .tok").first.click()
    page.frame_locator("iframe").locator(".details h3").wait_for()
    assert page.title() == "report"


def test_stopping_leaves_the_page_usable(look: Open, program: Program) -> None:
    found = example(look, program)
    page = found.page
    page.route("**/v1/score", lambda route: None)  # an answer that never comes
    page.get_by_role("button", name="Look", exact=True).click()
    page.get_by_role("button", name="Stop").click()
    page.unroute("**/v1/score")
    ask(found, prompt="a", response="b", teacher="default")
    expect(page.locator(".strip .tok")).to_have_count(1)
