# SPDX-License-Identifier: Apache-2.0
"""How the gallery's page looks and feels, in a real browser, with runs that the tests write down."""

from __future__ import annotations

from typing import Any

import pytest
from looks import LONG, REFUSED, SHAPES, SIZES, box_of, failed, loaded, posters

from airflow_provider_gptimg.gallery.recorded import Record, Submission
from airflow_provider_gptimg.gallery.roles import Role

expect = pytest.importorskip("playwright.sync_api").expect

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@SIZES
def test_a_tab_paints_once(page_of, look, size):
    """Neither what a tab does not have is seen first, nor does the page jump when tiles come."""
    page_of.show(*posters())
    page = look("about:blank", size)
    held: list[Any] = []
    page.route("**/tiles?*", lambda route: held.append(route))
    with page.expect_request("**/tiles?*"):
        page.goto(page_of.tab())
    for field in page.locator(".field").all():
        expect(field).to_be_hidden()
    placeholder = box_of(page.locator(".placeholder").first)
    header = box_of(page.locator(".bar"))
    held.pop().continue_()
    page.unroute("**/tiles?*")
    loaded(page, 2)
    tile = box_of(page.locator(".tile").first)
    assert (tile["x"], tile["y"]) == (placeholder["x"], placeholder["y"])
    assert abs(tile["height"] - placeholder["height"]) < 130
    assert box_of(page.locator(".bar"))["height"] == header["height"]
    expect(page.locator(".placeholder").first).to_be_hidden()


@SIZES
def test_tiles_have_the_shape_of_their_pictures(page_of, look, size):
    page_of.show(*posters())
    page = look(page_of.address, size)
    for number in range(8):
        page.locator(".tile").nth(number).scroll_into_view_if_needed()
        loaded(page, number + 1)
    for number, shot in enumerate(page.locator(".shot.loaded").all()):
        box, (width, height) = box_of(shot), SHAPES[number // 2]
        assert abs(box["width"] / box["height"] - width / height) < 0.02, "no bars beside it"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"


@SIZES
def test_the_viewer_keeps_its_actions_in_sight_however_long_the_prompt_is(page_of, look, size):
    page_of.show(*posters(LONG))
    page = look(page_of.address, size)
    loaded(page, 1)
    page.locator("button.shot").first.click()
    title = page.locator("#viewer-title")
    expect(title).to_have_text(LONG)
    expect(page.locator("#position")).to_have_text("1 of 8")

    def all_in_sight() -> None:
        for selector in (
            "#position",
            "#viewer-download",
            "#viewer-copy",
            "#viewer-task",
            "#viewer-log",
            "[data-close]",
        ):
            expect(page.locator(f"#viewer {selector}, {selector}").first).to_be_in_viewport(ratio=1)
        expect(page.locator("#stage img")).to_be_in_viewport(ratio=0.9)

    all_in_sight()
    clamped = box_of(title)["height"]
    page.get_by_role("button", name="Show All").click()
    assert box_of(title)["height"] > clamped
    all_in_sight()
    page.get_by_role("button", name="Show Less").click()
    assert box_of(title)["height"] == clamped
    facts = page.locator("#facts").inner_text()
    assert "1.7 MB" in facts, "as in the tile"
    assert "1.7 MB" in page.locator(".facts").first.inner_text()


@SIZES
def test_a_failed_tile_opens_to_its_error(page_of, look, size):
    page_of.show(*posters(), failed())
    page_of.logs["generate"] = REFUSED
    page = look(page_of.address, size)
    page.locator(".tile.failed").scroll_into_view_if_needed()
    page.locator(".tile.failed .reason", has_text="The prompt was refused").wait_for()
    page.locator(".failed button.shot").click()
    expect(page.locator("#stage .notice-title")).to_have_text("generate [9] failed")
    text = page.locator(".failure-text")
    expect(text).to_have_text(REFUSED.strip())
    expect(text).to_be_in_viewport()
    assert text.evaluate("e => e.scrollHeight <= e.clientHeight"), "all of it"
    expect(page.locator("#viewer-download")).to_be_hidden()
    assert (
        page.locator("#viewer-log")
        .get_attribute("href")
        .endswith("/dags/posters/runs/r1/tasks/generate/mapped/9?try_number=2")
    )


def test_what_did_not_run_leads_to_the_task_that_failed(page_of, look):
    blocked = Record("generate", -1, "upstream_failed", 0, prompt="A cat")
    broken = Record("check_budget", -1, "failed", 1)
    page_of.show(blocked, failed=(broken,))
    page_of.run = page_of.run.__class__(
        page_of.run.graph.__class__({"generate": Role.SUBMIT}, {"generate": {"check_budget"}}), [blocked], [broken]
    )
    page_of.logs["check_budget"] = "Too expensive"
    page = look(page_of.address)
    page.get_by_text("generate did not run, because check_budget failed: Too expensive").wait_for()
    assert page.locator("a.task").get_attribute("href").endswith("/tasks/check_budget")


def test_requests_that_were_not_submitted_are_shown_with_the_reason(page_of, look):
    reason = "Not submitted: the balance is 2 credits. " + "Top up. " * 60
    requests = [Submission(f"f.{i}", None, 1, f"Poster {i}", error=reason, state="not submitted") for i in range(3)]
    paid = [Submission(f"g.{i}", f"t{i}", 1, "Paid", state="accepted", credits=2) for i in range(2)]
    page_of.show(Record("batch", -1, "failed", 1, Role.BATCH, submissions=(*paid, *requests)))
    page = look(page_of.address)
    expect(page.locator(".tile.failed")).to_have_count(5)
    expect(page.locator("#summary")).to_have_text("0 images · 4 credits charged, 0 refunded")
    page.locator(".tile", has_text="Poster 2").locator("button.shot").click()
    expect(page.locator(".failure-text")).to_have_text(reason.strip())


def test_money_is_told_while_a_batch_runs(page_of, look):
    pending = [Submission(f"f.{i}", f"b{i}", 1, f"Poster {i}", credits=2) for i in range(79)]
    page_of.state = "running"
    page_of.show(Record("batch", -1, "deferred", 1, Role.BATCH, submissions=tuple(pending)))
    page = look(page_of.address)
    expect(page.locator("#summary")).to_have_text("0 images · 158 credits charged, 0 refunded")


def test_a_task_that_makes_no_images_says_so(page_of, look):
    page_of.show(*posters())
    page = look(page_of.tab("task", task_id="notify", map_index=-1))
    page.get_by_text("The task notify makes none").wait_for()
    expect(page.locator(".tile")).to_have_count(0)
    page = look(page_of.tab("task", task_id="mirror", map_index=1))
    expect(page.locator(".tile")).to_have_count(2)


def test_copied_is_said_within_the_dialog(page_of, look):
    page_of.show(*posters())
    page = look(page_of.address)
    loaded(page, 1)
    page.locator("button.shot").first.click()
    page.get_by_role("button", name="Copy S3 URI", exact=True).click()
    said = page.locator("#viewer .toast")
    expect(said).to_have_text("Copied s3://posters/gptimg/t0/0.png")
    expect(said).to_be_in_viewport()
    assert said.get_attribute("role") == "status"
    assert page.evaluate("navigator.clipboard.readText()") == "s3://posters/gptimg/t0/0.png"


@pytest.mark.parametrize("key", ["Tab", "Shift+Tab"])
def test_the_tab_key_stays_in_the_dialog_also_within_a_frame(page_of, look, key):
    page_of.show(*posters())
    page = look(f"{page_of.url}/frame?source={page_of.tab().replace('&', '%26')}")
    frame = page.frame_locator("iframe")
    frame.locator(".shot.loaded").first.wait_for()
    frame.locator("button.shot").first.click()
    seen = set()
    for _ in range(20):
        page.keyboard.press(key)
        seen.add(
            frame.locator("body").evaluate(
                "() => document.activeElement.closest('#viewer') && document.activeElement.id"
            )
        )
    assert None not in seen
    assert {"previous", "next", "viewer-download", "viewer-copy", "viewer-task", "viewer-log"} <= seen


def test_escape_closes_wherever_the_focus_is(page_of, look):
    page_of.show(*posters())
    page = look(page_of.address)
    loaded(page, 1)
    for leave in ("document.activeElement.blur()", "document.querySelector('#next').focus()", "0"):
        page.locator("button.shot").first.click()
        page.locator("#stage").click()
        page.evaluate(leave)
        page.keyboard.press("Escape")
        expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("button.shot").first).to_be_focused()


def test_links_lead_to_airflows_pages_out_of_the_frame(page_of, look):
    page_of.show(*posters())
    page = look(page_of.address)
    loaded(page, 1)
    card = page.locator(".tile").first
    task = f"{page_of.url}/dags/posters/runs/r1/tasks/generate/mapped/0"
    assert card.locator("a.task").get_attribute("href") == task
    assert card.get_by_role("link", name="Log of").get_attribute("href") == f"{task}?try_number=1"
    page.goto(f"{page_of.url}/frame?source={page_of.tab().replace('&', '%26')}")
    frame = page.frame_locator("iframe")
    frame.locator("a.task").first.click()
    page.wait_for_url(task)


def test_the_look_is_airflows_own(page_of, look):
    page_of.show(*posters())
    page = look(f"{page_of.url}/frame?source={page_of.tab().replace('&', '%26')}")
    frame = page.frame_locator("iframe")
    frame.locator(".shot.loaded").first.wait_for()
    frame.locator("button.shot").first.click()
    expect(frame.locator("#viewer-download")).to_have_css("background-color", "rgb(1, 2, 3)")


def test_times_are_in_the_zone_that_was_chosen_in_airflow(page_of, look):
    page_of.show(*posters())
    page = look(page_of.address, timezone_id="Europe/Rome")
    option = page.locator("#run option")
    expect(option).to_have_text("2026-11-28 10:30:00 · success · r1")
    page.evaluate("localStorage.setItem('timezone', 'Asia/Tokyo')")
    page.reload()
    expect(option).to_have_text("2026-11-28 18:30:00 · success · r1")


def test_a_busy_server_is_asked_again(page_of, look):
    page_of.show(*posters())
    page = look("about:blank")
    asked: list[str] = []

    def answer(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) <= 4:
            route.fulfill(status=503, headers={"retry-after": "1"}, json={"detail": "busy"})
        else:
            route.continue_()

    page.route("**/picture?*", answer)
    page.goto(page_of.tab("task", task_id="mirror", map_index=0))
    loaded(page, 2)


def test_a_picture_that_cannot_be_shown_says_why(page_of, look):
    page_of.show(*posters())
    page_of.problem = "Not shown: mirrored by a release before 1.0"
    page = look(page_of.address)
    page.locator(".hint", has_text=page_of.problem).first.wait_for()
