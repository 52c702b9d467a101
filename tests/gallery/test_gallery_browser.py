# SPDX-License-Identifier: Apache-2.0
"""What people see of the gallery, in a real browser."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from gallery_xcoms import HOSTILE, set_xcom

expect = pytest.importorskip("playwright.sync_api").expect

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def _shown(page: Any, n: int) -> None:
    """Wait until `n` pictures are loaded."""
    page.locator(".shot.loaded").nth(n - 1).wait_for(timeout=60_000)


def _tab_to(page: Any, selector: str) -> None:
    for _ in range(40):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached with the Tab key")


def test_a_viewer_sees_the_pictures_and_what_is_known_of_them(gallery, private_run, open_as):
    page = open_as("vera")
    page.goto(gallery.page(private_run))
    _shown(page, 2)
    tile = gallery.tiles(private_run)[0]
    card = page.locator(".tile").first
    expect(card.locator(".facts")).to_have_text(re.compile(r"^\d+ × \d+ · [\d.]+ [kM]?B · 2 credits$"))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    card.get_by_role("button", name="Copy S3 URI").click()
    page.locator("#said.shown").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == tile["uri"]
    with page.expect_download() as download:
        card.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == f"{tile['image_task']}-0.png"


def test_a_thumbnail_shows_the_whole_picture(gallery, hosted_run, open_as):
    page = open_as("vera")
    page.goto(gallery.page(hosted_run))
    _shown(page, 1)
    shot = page.locator(".shot.loaded")
    picture = shot.locator("img")
    assert picture.evaluate("e => e.naturalHeight >= e.naturalWidth"), "else it would fit into any tile"
    expect(picture).to_have_css("object-fit", "contain")
    boxes = "e => [e, e.querySelector('img')].map(each => JSON.stringify(each.getBoundingClientRect()))"
    of_tile, of_picture = shot.evaluate(boxes)
    assert of_picture == of_tile


def test_a_prompt_stays_text(gallery, private_run, open_as):
    page = open_as("vera")
    page.goto(gallery.page(private_run))
    _shown(page, 2)
    prompt = gallery.tiles(private_run)[0]["prompt"]
    assert "onerror" in prompt
    assert page.locator(".prompt").first.inner_text() == prompt
    page.locator("button.shot").first.click()
    expect(page.locator("#viewer-title")).to_have_text(prompt)
    assert page.locator("img[src=x]").count() == 0
    assert page.title() == "Generated Images"


def test_without_access_there_is_nothing_to_see(gallery, private_run, open_as):
    page = open_as("otto")
    page.goto(gallery.page(private_run))
    page.get_by_text("No access").wait_for()
    assert page.locator(".tile").count() == 0
    assert page.locator("img").count() == 0


def test_without_a_login_there_is_nothing_to_see(gallery, private_run, open_as):
    page = open_as(None)
    page.goto(gallery.page(private_run))
    page.get_by_text("You are not logged in").wait_for()
    assert page.locator(".tile").count() == 0
    assert private_run.dag_id not in page.inner_text("main")


def test_pending_turns_into_a_picture_without_a_reload(gallery, open_as):
    run = gallery.start("gallery_private", prompt="Awaited")
    image_task = gallery.submitted("Awaited")
    page = open_as("vera")
    page.goto(gallery.page(run))
    page.locator(".tile.pending").nth(1).wait_for()
    expect(page.locator("#live")).to_be_visible()
    page.evaluate("window.sameDocument = true")
    gallery.emulator.finish(image_task)
    _shown(page, 2)
    assert page.locator(".tile.pending").count() == 0
    assert page.evaluate("window.sameDocument")
    assert run.wait() == "success"
    page.locator("[title^='Copy s3://']").nth(1).wait_for()
    page.locator("#live").wait_for(state="hidden")


def test_a_failure_says_why(gallery, hosted_run, open_as):
    page = open_as("vera")
    page.goto(gallery.page(hosted_run))
    failed = page.locator(".tile.failed")
    failed.get_by_text("The prompt was refused").wait_for()
    failed.locator("button.shot").click()
    page.locator(".failure-text", has_text="The prompt was refused").wait_for()


def test_foreign_texts_stay_text_wherever_they_come_from(gallery, open_as):
    """Ids, keys, types and errors in XComs are as foreign as prompts."""
    run = gallery.start("gallery_private", prompt="With foreign texts")
    gallery.emulator.finish(gallery.submitted("With foreign texts"))
    assert run.wait() == "success"
    own = gallery.tiles(run)[0]
    marks = gallery.s3.head_object(Bucket="gallery", Key=own["uri"].removeprefix("s3://gallery/"))["Metadata"]
    body = gallery.picture(run, own).content
    marks["gptimg-task-id"] = HOSTILE
    gallery.s3.put_object(Bucket="gallery", Key=HOSTILE, Body=body, Metadata=marks, ContentType="text/html")
    hostile = dict.fromkeys(("task_id", "content_type", "sha256", "source_url", "endpoint_url"), HOSTILE)
    set_xcom(run, "mirror", [hostile | {"uri": f"s3://gallery/{HOSTILE}", "index": 0, "size": 5}])
    page = open_as("vera")
    page.goto(gallery.page(run))
    tile = page.locator(".tile", has_text=HOSTILE)
    tile.locator(".shot.loaded").wait_for()
    tile.locator("button.shot").click()
    facts = page.locator("#facts").inner_text()
    assert facts.count(HOSTILE) == 4, facts
    expect(page.locator("#viewer-title")).to_have_text(HOSTILE)
    assert page.locator("img[src=x]").count() == 0
    assert page.title() == "Generated Images"


def test_a_run_is_found_by_an_id_that_is_not_escaped(gallery, hosted_run, open_as):
    """As Airflow 3.1 writes it into the address of its tabs."""
    assert "+" in hosted_run.run_id
    page = open_as("vera")
    page.goto(f"{gallery.url}/gptimg/?of=run&dag_id={hosted_run.dag_id}&run_id={hosted_run.run_id}")
    _shown(page, 1)
    expect(page.locator(".tile")).to_have_count(2)


def test_an_address_leads_nowhere_but_to_a_run(gallery, open_as):
    """Parts of the page's own address, in a link that somebody sent, must not lead to other requests."""
    page = open_as("vera")
    page.goto("about:blank")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(urlsplit(request.url).path))
    for dag_id, run_id in (("..", "x"), ("x", ".."), ("../../../api/v2/config", "."), ("%2e%2e", "x")):
        page.goto(
            str(httpx.URL(f"{gallery.url}/gptimg/?of=run", params={"of": "run", "dag_id": dag_id, "run_id": run_id}))
        )
        page.get_by_text("No such run").wait_for()
    places = "/api/v2/dags/", "/gptimg/dags/"
    static = r"/gptimg/([a-z]+\.(js|css|svg))?"
    assert [path for path in asked if not path.startswith(places) and not re.fullmatch(static, path)] == []


def test_a_session_that_ends_takes_the_pictures_with_it(gallery, open_as):
    run = gallery.start("gallery_private", prompt="Seen and then not")
    image_task = gallery.submitted("Seen and then not")
    page = open_as("vera")
    page.goto(gallery.page(run))
    page.locator(".tile.pending").nth(1).wait_for()
    cookies = page.context.cookies()
    page.context.clear_cookies()
    page.get_by_text("You are not logged in").wait_for()
    assert page.locator(".tile").count() == 0
    assert "Seen and then not" not in page.inner_text("body")
    page.context.add_cookies(cookies)
    page.get_by_role("button", name="Try again").click()
    page.locator(".tile.pending").nth(1).wait_for()
    gallery.emulator.finish(image_task)
    _shown(page, 2)
    assert run.wait() == "success"


def test_loading_and_trouble_are_told(gallery, private_run, open_as):
    page = open_as("vera")
    held: list[Any] = []
    page.route("**/tiles?*", lambda route: held.append(route))
    with page.expect_request("**/tiles?*"):
        page.goto(gallery.page(private_run))
    page.get_by_text("Loading").wait_for()
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "true")
    held.pop().abort()
    page.unroute("**/tiles?*")
    page.get_by_role("alert").get_by_text("Airflow does not answer").wait_for()
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")
    page.route("**/tiles?*", lambda route: route.fulfill(status=503))
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("alert").get_by_text("status 503").wait_for()
    page.unroute("**/tiles?*")
    page.get_by_role("button", name="Try again").click()
    _shown(page, 2)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_picture_that_cannot_be_had_says_why(gallery, private_run, open_as):
    page = open_as("vera")
    problem = {"status": 502, "json": {"detail": "The vendor does not host the image any more"}}
    page.route("**/picture?*", lambda route: route.fulfill(**problem))
    page.goto(gallery.page(private_run))
    page.locator(".hint", has_text="does not host the image any more").first.wait_for()
    page.locator("button.shot").first.click()
    page.get_by_role("alert").get_by_text("does not host the image any more").wait_for()


def test_a_run_without_images_says_so(gallery, open_as):
    run = gallery.start("gallery_imageless")
    assert run.wait() == "success"
    page = open_as("vera")
    page.goto(gallery.page(run))
    page.get_by_text("This run makes none").wait_for()
    expect(page.locator("#summary")).to_be_empty()


def test_filters_by_state_run_and_dag(gallery, private_run, hosted_run, open_as):
    page = open_as("vera")
    page.goto(gallery.page(hosted_run))
    _shown(page, 1)
    page.locator("#states label", has_text="Failed").click()
    expect(page.locator(".tile:visible")).to_have_count(1)
    page.locator("#states label", has_text="Pending").click()
    page.get_by_text("No pending images").wait_for()
    page.locator("#states label", has_text="All").click()
    page.select_option("#dag", "gallery_private")
    page.locator(f'#run option[value="{private_run.run_id}"]').wait_for(state="attached")
    page.select_option("#run", private_run.run_id)
    prompt = gallery.tiles(private_run)[0]["prompt"]
    page.locator(".prompt", has_text=prompt).first.wait_for()
    page.select_option("#dag", "gallery_empty")
    page.get_by_text("No runs").wait_for()
    expect(page.locator(".tile")).to_have_count(0)


def test_all_of_it_works_with_the_keyboard_alone(gallery, private_run, open_as):
    page = open_as("vera")
    page.goto(gallery.page(private_run))
    _shown(page, 2)
    _tab_to(page, "input[name=state][value=all]")
    page.keyboard.press("ArrowRight")
    expect(page.locator("input[value=ready]")).to_be_checked()
    _tab_to(page, "button.shot")
    page.keyboard.press("ArrowRight")
    expect(page.locator("button.shot").nth(1)).to_be_focused()
    ring = "e => getComputedStyle(e).outlineStyle"
    rings = [tile.evaluate(ring) for tile in page.locator(".tile").all()]
    assert rings == ["none", "solid"], "where one is can be seen"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(page.locator("#position")).to_have_text("1 of 2")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#position")).to_have_text("2 of 2")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("button.shot").nth(1)).to_be_focused()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    _tab_to(page, "button.icon-button")
    page.keyboard.press("Enter")
    page.locator("#said.shown").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == gallery.tiles(private_run)[1]["uri"]
    _tab_to(page, "a[download].icon-button")
    with page.expect_download():
        page.keyboard.press("Enter")


def test_a_screen_reader_is_told(gallery, private_run, open_as):
    page = open_as("vera")
    page.goto(gallery.page(private_run))
    _shown(page, 2)
    expect(page.get_by_role("status").first).to_have_text("2 images · 4 credits charged, 0 refunded")
    prompt = gallery.tiles(private_run)[0]["prompt"]
    expect(page.get_by_role("button", name=f"Open image 2: {prompt}")).to_have_count(1)
    name = "e => (e.ariaLabel || e.innerText || e.labels?.[0]?.innerText || '').trim()"
    names = [
        control.evaluate(name) for control in page.locator("button, a, input, select").all() if control.is_visible()
    ]
    assert all(names)
    assert len(set(names)) == len(names), "in a list of controls nothing but their names tells them apart"


def test_light_and_dark_as_airflow_is_set(gallery, private_run, open_as):
    page = open_as("vera")
    page.evaluate("localStorage.setItem('theme', 'light')")
    run_id = quote(private_run.run_id, safe="")
    page.goto(f"{gallery.url}/dags/{private_run.dag_id}/runs/{run_id}/tasks/wait/plugin/gptimg-images")
    frame = page.frame_locator("iframe")
    frame.locator(".shot.loaded").nth(1).wait_for()

    def brightness() -> float:
        colour = frame.locator("body").evaluate(
            """e => {
              const pen = new OffscreenCanvas(1, 1).getContext("2d");
              pen.fillStyle = getComputedStyle(e).backgroundColor;
              pen.fillRect(0, 0, 1, 1);
              return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
            }"""
        )
        return float(sum(colour)) / 3

    assert brightness() > 200
    # As Airflow's switch does; the gallery follows without a reload.
    page.evaluate("localStorage.setItem('theme', 'dark')")
    frame.locator("html[data-theme=dark]").wait_for()
    page.reload()
    frame.locator(".shot.loaded").nth(1).wait_for()
    assert brightness() < 80


def test_it_is_reached_from_the_navigation_and_from_a_task_instance(gallery, hosted_run, open_as):
    page = open_as("vera")
    page.get_by_role("button", name="Browse").click()
    page.get_by_text("Generated Images").click()
    page.frame_locator("iframe").locator(".tile").first.wait_for(timeout=60_000)
    run_id = quote(hosted_run.run_id, safe="")
    page.goto(f"{gallery.url}/dags/gallery_hosted/runs/{run_id}/tasks/generate/mapped/0")
    page.get_by_role("link", name="Images").click()
    frame = page.frame_locator("iframe")
    frame.locator(".shot.loaded").wait_for(timeout=60_000)
    expect(frame.locator(".tile")).to_have_count(1)
    expect(frame.locator(".prompt")).to_have_text("A good one")
    page.goto(f"{gallery.url}/dags/gallery_hosted/runs/{run_id}")
    page.get_by_role("link", name="Images").click()
    page.frame_locator("iframe").locator(".tile").nth(1).wait_for(timeout=60_000)


def test_five_hundred_pictures_take_few_calls_and_load_as_they_are_seen(gallery, many_run, open_as):
    page = open_as("vera")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(gallery.page(many_run))
    _shown(page, 4)
    page.wait_for_load_state("networkidle")
    expect(page.locator(".tile")).to_have_count(500)
    pictures = [url for url in asked if "/picture?" in url]
    calls = [url for url in asked if "/api/v2/" in url or "/tiles?" in url]
    assert len(pictures) <= 60
    assert len(calls) <= 6
    page.locator(".tile").last.scroll_into_view_if_needed()
    page.locator(".tile:last-child .shot.loaded").wait_for()
    assert len([url for url in asked if "/picture?" in url]) < 200
