# SPDX-License-Identifier: Apache-2.0
"""What there is to see of a run, by values: which tiles, in which state, and which bytes they stand for."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_gptimg.gallery.tiles import MAX_TILES, Listed, Picture, Record, find_picture, make_tiles


def record(task_id: str, operator: str, state: str | None = "success", **known: Any) -> Record:
    known.setdefault("map_index", -1)
    return Record(task_id=task_id, operator=operator, state=state, try_number=1, **known)


def submit(state: str | None = "success", **known: Any) -> Record:
    return record("submit", "GptImgSubmitOperator", state, prompt="A cat", **known)


def wait(state: str | None = "success", **known: Any) -> Record:
    return record("wait", "GptImgTaskSensor", state, **known)


def mirror(state: str | None = "success", **known: Any) -> Record:
    return record("mirror", "GptImgToS3Operator", state, **known)


def finished(image_task: str = "t1", n: int = 1) -> dict[str, Any]:
    images = [{"url": f"https://file.gptimg.co/{image_task}/{index}.png"} for index in range(n)]
    return {"task_id": image_task, "status": "completed", "images": images}


def mirrored(image_task: str = "t1", index: int = 0) -> dict[str, Any]:
    uri = f"s3://bucket/{image_task}/{index}.png"
    return {"task_id": image_task, "index": index, "uri": uri, "size": 10, "sha256": "ab", "content_type": "image/png"}


def seen(*records: Record) -> list[tuple[str, str | None, int]]:
    return [(tile["state"], tile["image_task"], tile["index"]) for tile in make_tiles(records)]


@pytest.mark.parametrize("state", [None, "scheduled", "queued", "running", "deferred", "up_for_retry"])
def test_a_submit_under_way_is_pending_once_for_each_image(state):
    assert seen(submit(state, fields={"n": "3"})) == [("pending", None, index) for index in range(3)]


@pytest.mark.parametrize("state", ["skipped", "removed"])
def test_what_was_not_run_is_not_shown(state):
    assert seen(submit(state)) == []


def test_a_submitted_image_is_pending_until_a_wait_tells_of_it():
    assert seen(submit(result="t1"), wait("deferred")) == [("pending", "t1", 0)]
    assert seen(submit(result="t1"), wait(result=finished())) == [("ready", "t1", 0)]


def test_submit_wait_and_transfer_are_one_tile_that_shows_the_object():
    tiles = make_tiles([mirror(result=[mirrored()]), wait(result=finished()), submit(result="t1")])
    assert len(tiles) == 1
    assert tiles[0]["uri"] == "s3://bucket/t1/0.png"
    assert tiles[0]["source"] == {"task_id": "mirror", "map_index": -1}
    assert tiles[0]["prompt"] == "A cat"
    assert tiles[0]["seen_by"] == ["mirror:-1", "submit:-1", "wait:-1"]


def test_a_tile_keeps_its_id_as_its_image_comes_into_being():
    stages = [
        [submit("running")],
        [submit(result="t1"), wait("deferred")],
        [submit(result="t1"), wait(result=finished())],
        [submit(result="t1"), wait(result=finished()), mirror(result=[mirrored()])],
    ]
    assert len({make_tiles(stage)[0]["id"] for stage in stages}) == 1


def test_mapped_tasks_keep_their_order():
    records = [submit(result=f"t{index}", map_index=index) for index in (10, 2, 0)]
    assert [tile["map_index"] for tile in make_tiles(records)] == [0, 2, 10]


def test_a_failed_submit_is_one_failed_tile():
    tiles = make_tiles([submit("failed", fields={"n": 4}), wait("upstream_failed")])
    assert [(tile["state"], tile["failure"]["task_id"]) for tile in tiles] == [("failed", "submit")]


def test_a_failed_wait_fails_the_images_it_waited_for_and_no_others():
    first, second = submit(result="t1", map_index=0), submit(result="t2", map_index=1)
    failed = wait("failed", fields={"gptimg_task_id": "t2"})
    assert seen(first, second, failed) == [("pending", "t1", 0), ("failed", "t2", 0)]


def test_a_failed_wait_that_names_no_ids_is_about_its_task_group():
    inside = record("group.submit", "GptImgSubmitOperator", result="t1")
    failed = record("group.wait", "GptImgTaskSensor", "failed", fields={"gptimg_task_id": "LazySequence(…)"})
    assert seen(inside, submit(result="t2"), failed) == [("failed", "t1", 0), ("pending", "t2", 0)]


def test_a_failed_transfer_leaves_hosted_pictures_in_sight_and_says_what_is_missing():
    tile = make_tiles([wait(result=finished()), mirror("failed", fields={"gptimg_task_id": "t1"})])[0]
    assert (tile["state"], tile["uri"], tile["failure"]["task_id"]) == ("ready", None, "mirror")


def test_a_wait_for_a_foreign_task_is_seen_too():
    assert seen(wait("deferred", fields={"gptimg_task_id": ["t8", "t9"]})) == [
        ("pending", "t8", 0),
        ("pending", "t9", 0),
    ]


def listed(name: str, image_task: str | None, *, n: int = 1, ready: bool = False, error: str | None = None) -> Listed:
    pictures = tuple(Picture(image_task or "", index, bucket="bucket", key=f"{index}") for index in range(n))
    return Listed(name, image_task, n, f"Prompt {name}", pictures if ready else (), error)


def batch(state: str | None, *requests: Listed) -> Record:
    return record("batch", "GptImgBatchToS3Operator", state, listed=requests)


def test_a_batch_shows_each_request_as_it_stands():
    ready, waiting = listed("0.0", "t1", ready=True), listed("0.1", "t2", n=2)
    refused = listed("0.2", None, error="Refused")
    running = batch("deferred", ready, waiting, refused)
    assert seen(running) == [("ready", "t1", 0), ("pending", "t2", 0), ("pending", "t2", 1), ("failed", None, 0)]
    tiles = make_tiles([running])
    assert len({tile["id"] for tile in tiles}) == 4
    assert [tile["prompt"] for tile in tiles] == ["Prompt 0.0", "Prompt 0.1", "Prompt 0.1", "Prompt 0.2"]
    assert tiles[-1]["failure"]["reason"] == "Refused"
    assert find_picture(running, "t1", 0) is not None
    assert find_picture(running, "t2", 0) is None


def test_a_batch_that_has_not_begun_is_pending_and_one_that_fails_says_so():
    assert seen(batch("running")) == [("pending", None, 0)]
    assert seen(batch("failed")) == [("failed", None, 0)]
    assert seen(batch("failed", listed("0.0", "t1", ready=True))) == [("ready", "t1", 0), ("failed", None, 0)]
    assert seen(batch("failed", listed("0.0", "t1", error="Refused"))) == [("failed", "t1", 0)]
    assert seen(batch("failed", listed("0.0", "t1"))) == [("failed", "t1", 0)]


@pytest.mark.parametrize(
    "result",
    [
        None,
        5,
        "",
        {},
        [None, 5, {}],
        {"task_id": 5},
        {"task_id": "t1", "status": "completed", "images": "x"},
        {"task_id": "t1", "status": "completed", "images": [None, {"url": 5}]},
        [{"task_id": "t1", "uri": "s3://", "index": 0}],
        [{"task_id": "t1", "uri": "file:///etc/passwd", "index": 0}],
        [{"task_id": "t1", "uri": "s3://b/k", "index": "0"}],
    ],
)
def test_odd_xcoms_give_no_picture(result):
    odd = wait(result=result)
    assert find_picture(odd, "t1", 0) is None
    assert all(tile["state"] != "ready" for tile in make_tiles([odd]))


def test_only_what_is_named_is_found():
    named = mirror(result=[mirrored("t1", 0)])
    assert find_picture(named, "t1", 0) == Picture("t1", 0, None, "bucket", "t1/0.png", 10, "image/png", "ab")
    assert find_picture(named, "t1", 1) is None
    assert find_picture(named, "t2", 0) is None


def test_the_address_that_an_xcom_backend_leaves_in_place_of_a_result_is_no_image_task():
    assert seen(submit(result="s3://xcoms/dag/run/task/0.json")) == []


def test_no_result_makes_more_tiles_than_can_be_shown():
    of_one = finished(n=1000)
    assert len(make_tiles([wait(result=of_one)])) == 4
    assert len(make_tiles([wait(result=[finished(f"t{number}") for number in range(MAX_TILES + 1)])])) == MAX_TILES
