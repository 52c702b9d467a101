# SPDX-License-Identifier: Apache-2.0
"""The image host and the pictures it serves."""

from __future__ import annotations

import io

import httpx
import pytest
from PIL import Image

from airflow_provider_gptimg.emulator.pictures import draw, pixel_size


def fetch(api, task_id: str) -> list[httpx.Response]:
    return [httpx.get(image["url"]) for image in api.data(task_id)["images"]]


def test_images_are_whole_and_what_they_are_declared_to_be(emulator, api):
    task_id = emulator.add_task(n=3, formats=("png", "jpeg", "webp"))
    images, answers = api.data(task_id)["images"], fetch(api, task_id)
    assert [image["content_type"] for image in images] == ["image/png", "image/jpeg", "image/webp"]
    assert [image["url"].rpartition(".")[2] for image in images] == ["png", "jpeg", "webp"]
    for image, answer in zip(images, answers, strict=True):
        assert answer.status_code == 200
        assert answer.headers["content-type"] == image["content_type"]
        assert int(answer.headers["content-length"]) == len(answer.content)
        with Image.open(io.BytesIO(answer.content)) as picture:
            picture.load()
            assert picture.format == image["content_type"].partition("/")[2].upper()
    assert emulator.task(task_id).images == [answer.content for answer in answers]


def test_images_differ_by_prompt_number_and_task(emulator):
    tasks = [emulator.add_task("a cat", n=2), emulator.add_task("a dog", n=2), emulator.add_task("a cat", n=2)]
    images = [image for task_id in tasks for image in emulator.task(task_id).images]
    assert len(set(images)) == 6


def test_an_image_is_served_without_a_key_and_only_when_it_is_done(emulator, api):
    task_id = emulator.add_task(status="processing")
    name = emulator.task(task_id).pictures[0].name
    url = f"{emulator.base_url}/gpt-image-2-outputs/{name}"
    assert httpx.get(url).status_code == 404
    emulator.finish(task_id)
    assert api.data(task_id)["media_url"] == url
    assert httpx.get(url).status_code == 200
    assert "authorization" not in emulator.calls[-1].headers
    assert httpx.get(url, headers={"Authorization": "Bearer leaked"}).status_code == 200
    assert emulator.calls[-1].headers["authorization"] == "Bearer leaked"
    assert httpx.get(f"{emulator.base_url}/gpt-image-2-outputs/nothing.png").status_code == 404


def test_bytes_types_and_urls_can_be_given(emulator, api):
    one = emulator.add_task(image_bytes=b"not a picture", content_type="image/tiff", n=2)
    assert [(answer.content, answer.headers["content-type"]) for answer in fetch(api, one)] == [
        (b"not a picture", "image/tiff")
    ] * 2
    assert {image["content_type"] for image in api.data(one)["images"]} == {"image/tiff"}
    two = emulator.add_task(image_bytes=[b"1", b"2", b"3"])
    assert [answer.content for answer in fetch(api, two)] == emulator.task(two).images == [b"1", b"2", b"3"]
    elsewhere = ["https://elsewhere.test/1.png", "ftp://x"]
    three = emulator.add_task(image_urls=elsewhere)
    assert [image["url"] for image in api.data(three)["images"]] == elsewhere
    none = api.data(emulator.add_task(image_urls=[]))
    assert (none["status"], none["images"], none["media_url"]) == ("completed", [], None)


@pytest.mark.parametrize("ratio", [None, "1:1", "16:9", "9:16", "999999:1", "1:99"])
def test_the_aspect_ratio_decides_the_size(ratio):
    width, height = pixel_size(ratio)
    assert 256 <= min(width, height) <= max(width, height) <= 1024
    if ratio in ("16:9", "9:16"):
        assert max(width, height) / min(width, height) == pytest.approx(16 / 9, rel=0.01)


def test_a_submitted_aspect_ratio_reaches_the_picture(emulator, api, until):
    task_id = api.submit(aspect_ratio="9:16").json()["data"]["task_id"]
    until(lambda: emulator.task(task_id).status == "completed")
    with Image.open(io.BytesIO(emulator.task(task_id).images[0])) as picture:
        assert picture.size == pixel_size("9:16")


def test_the_prompt_is_written_on_the_picture():
    def white(prompt: str) -> int:
        with Image.open(io.BytesIO(draw(prompt, 1, 1, "gpt-image-2-x", None, "png"))) as picture:
            return picture.convert("L").histogram()[255]

    assert white("a") < white("a cat") < white("a cat on a warm roof")


@pytest.mark.parametrize(
    "prompt",
    ["", "x" * 5000, "word " * 5000, "line\nbreak\ttab", "\ud800 half a pair", "猫 кошка 🐈", "\x00"],
    ids=["empty", "one-word", "many-words", "breaks", "surrogate", "scripts", "nul"],
)
def test_any_prompt_can_be_drawn(prompt):
    drawn = draw(prompt, 1, 1, "gpt-image-2-x", "1:99", "png")
    draw.cache_clear()
    assert draw(prompt, 1, 1, "gpt-image-2-x", "1:99", "png") == drawn
