# SPDX-License-Identifier: Apache-2.0
"""What there is to see of a run, by values: which tiles, in which state, and which bytes they stand for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from airflow_provider_gptimg.gallery.recorded import Picture, Record, Submission
from airflow_provider_gptimg.gallery.roles import Graph, Role
from airflow_provider_gptimg.gallery.tiles import MAX_TILES, Credits, Gallery


def record(task_id: str, role: Role, state: str | None = "success", **known: Any) -> Record:
    known.setdefault("map_index", -1)
    return Record(task_id=task_id, role=role, state=state, try_number=1, **known)


def make_tiles(records: Iterable[Record], *edges: str) -> list[dict[str, Any]]:
    """Return the tiles of records; an edge is written `one >> other`."""
    return Gallery(records, graph(*edges)).tiles()


def graph(*edges: str) -> Graph:
    upstream: dict[str, set[str]] = {}
    for edge in edges:
        above, _, below = edge.partition(" >> ")
        upstream.setdefault(below, set()).add(above)
    return Graph(upstream=upstream)


def submit(state: str | None = "success", **known: Any) -> Record:
    return record("submit", Role.SUBMIT, state, prompt="A cat", **known)


def wait(state: str | None = "success", **known: Any) -> Record:
    return record("wait", Role.WAIT, state, **known)


def mirror(state: str | None = "success", **known: Any) -> Record:
    return record("mirror", Role.MIRROR, state, **known)


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


def test_a_tile_keeps_its_id_as_its_image_comes_into_being():
    stages = [
        [submit("running")],
        [submit(result="t1"), wait("deferred")],
        [submit(result="t1"), wait(result=finished())],
        [submit(result="t1"), wait(result=finished()), mirror(result=[mirrored()])],
    ]
    assert len({make_tiles(stage)[0]["id"] for stage in stages}) == 1


def test_what_runs_first_comes_first_whatever_its_name():
    records = [record(name, Role.SUBMIT, None, prompt=name) for name in ("again", "draft", "last")]
    tiles = make_tiles(records, "draft >> review", "review >> again", "again >> last", "draft >> last")
    assert [tile["task_id"] for tile in tiles] == ["draft", "again", "last"]


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


def test_a_failed_wait_that_names_no_ids_is_about_what_stands_before_it():
    one, other = record("one", Role.SUBMIT, result="t1"), record("other", Role.SUBMIT, result="t2")
    failed = wait("failed", fields={"gptimg_task_id": "LazySequence(…)"})
    tiles = make_tiles([one, other, failed], "one >> join", "join >> wait", "wait >> other")
    assert [(tile["state"], tile["image_task"]) for tile in tiles] == [("failed", "t1"), ("pending", "t2")]


def test_a_mapped_wait_that_names_no_ids_is_about_its_own_index():
    submits = [submit(result=f"t{index}", map_index=index) for index in range(3)]
    failed = wait("failed", map_index=1)
    assert [tile["state"] for tile in make_tiles([*submits, failed], "submit >> wait")] == [
        "pending",
        "failed",
        "pending",
    ]


def test_nobody_is_blamed_where_it_is_not_known_who_failed():
    both = record("both", Role.WAIT, result=[finished("t1"), finished("t2")])
    failed = mirror("failed", map_index=1)
    tiles = make_tiles([both, failed], "both >> mirror")
    assert [(tile["state"], tile["image_task"], tile["task_id"]) for tile in tiles] == [
        ("ready", "t1", "both"),
        ("ready", "t2", "both"),
        ("failed", None, "mirror"),
    ]
    assert all("failure" not in tile for tile in tiles[:2])


def test_a_fine_picture_is_not_marked_when_another_task_kept_it_from_s3():
    good, bad = submit(result=finished("t1"), map_index=0), submit("failed", map_index=1)
    tiles = make_tiles([good, bad, mirror("upstream_failed")], "submit >> mirror")
    assert [(tile["state"], tile.get("failure", {}).get("map_index")) for tile in tiles] == [
        ("ready", None),
        ("failed", 1),
    ]


def test_what_did_not_run_names_the_task_that_failed():
    broken = Record("check", -1, "failed", 2)
    tiles = Gallery([submit("upstream_failed")], graph("check >> pause", "pause >> submit"), [broken]).tiles()
    failure = tiles[0]["failure"]
    assert (failure["task_id"], failure["try_number"], failure["not_run"]) == ("check", 2, "submit")


def test_tiles_of_one_task_are_those_that_it_had_to_do_with():
    submits = [submit(result=f"t{index}", map_index=index) for index in range(2)]
    waits = [wait(result=finished(f"t{index}"), map_index=index) for index in range(2)]
    run = Gallery([*submits, *waits, mirror(result=[mirrored("t0")])])
    of = {
        place: [tile["image_task"] for tile in run.tiles(*place)]
        for place in (("wait", 1), ("wait", -1), ("submit", 0), ("mirror", -1), ("other", -1))
    }
    assert of == {
        ("wait", 1): ["t1"],
        ("wait", -1): ["t0", "t1"],
        ("submit", 0): ["t0"],
        ("mirror", -1): ["t0"],
        ("other", -1): [],
    }


@pytest.mark.timeout(120)
def test_work_grows_with_what_is_recorded_and_no_faster():
    """Waits whose ids are unreadable, and many transfers of the same images."""
    submits = [submit(result=f"t{index}", map_index=index) for index in range(4000)]
    waits = [wait("failed", map_index=index) for index in range(4000)]
    tiles = make_tiles([*submits, *waits], "submit >> wait")
    assert len(tiles) == 4000
    assert {tile["failure"]["task_id"] for tile in tiles} == {"wait"}
    assert len(json.dumps(tiles)) < 4 << 20
    objects = [mirrored(f"t{index}") for index in range(1000)]
    tiles = make_tiles([mirror(result=objects, map_index=index) for index in range(100)])
    assert len(json.dumps(tiles)) < 1 << 20


def test_credits_are_counted_in_every_state():
    pending = batch("running", *(listed(f"0.{index}", f"t{index}", n=2) for index in range(3)))
    assert Gallery([pending]).credits() == Credits(charged=12)
    entries = [
        Submission("0.0", "t0", 4, state="refunded", credits=8, error="Refused"),
        Submission("0.1", None, 1, state="unknown", credits=2),
        Submission("0.2", None, 1, state="not submitted", error="No credits"),
    ]
    assert Gallery([batch("failed", *entries)]).credits() == Credits(charged=8, refunded=8, unknown=2)
    assert Gallery([submit(result="t1", fields={"n": 3})]).credits() == Credits(charged=6)
    foreign = wait("deferred", fields={"gptimg_task_id": "t8"})
    assert Gallery([foreign]).credits() == Credits(), "this run did not pay for it"


def test_a_failed_transfer_leaves_hosted_pictures_in_sight_and_says_what_is_missing():
    tile = make_tiles([wait(result=finished()), mirror("failed", fields={"gptimg_task_id": "t1"})])[0]
    assert (tile["state"], tile["uri"], tile["failure"]["task_id"]) == ("ready", None, "mirror")


def test_a_wait_for_a_foreign_task_is_seen_too():
    assert seen(wait("deferred", fields={"gptimg_task_id": ["t8", "t9"]})) == [
        ("pending", "t8", 0),
        ("pending", "t9", 0),
    ]


def listed(
    name: str, image_task: str | None, *, n: int = 1, ready: bool = False, error: str | None = None
) -> Submission:
    pictures = tuple(Picture(image_task or "", index, bucket="bucket", key=f"{index}") for index in range(n))
    return Submission(name, image_task, n, f"Prompt {name}", pictures if ready else (), error, credits=2 * n)


def batch(state: str | None, *requests: Submission) -> Record:
    return record("batch", Role.BATCH, state, submissions=requests)


def test_a_batch_shows_each_request_as_it_stands():
    ready, waiting = listed("0.0", "t1", ready=True), listed("0.1", "t2", n=2)
    refused = listed("0.2", None, error="Refused")
    running = batch("deferred", ready, waiting, refused)
    assert seen(running) == [("ready", "t1", 0), ("pending", "t2", 0), ("pending", "t2", 1), ("failed", None, 0)]
    tiles = make_tiles([running])
    assert len({tile["id"] for tile in tiles}) == 4
    assert [tile["prompt"] for tile in tiles] == ["Prompt 0.0", "Prompt 0.1", "Prompt 0.1", "Prompt 0.2"]
    assert tiles[-1]["failure"]["reason"] == "Refused"
    assert running.find("t1", 0) is not None
    assert running.find("t2", 0) is None


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
    assert odd.find("t1", 0) is None
    assert all(tile["state"] != "ready" for tile in make_tiles([odd]))


def test_a_type_that_is_no_text_does_not_count():
    images = [{"url": "https://file.gptimg.co/a.png", "content_type": ["image/png"]}]
    hosted = wait(result={"task_id": "t1", "status": "completed", "images": images})
    stored = mirror(result=[mirrored() | {"content_type": ["image/png"], "size": True, "sha256": {}, "pixels": [1]}])
    for record in (hosted, stored):
        (tile,) = make_tiles([record])
        assert (tile["state"], tile["content_type"], tile["size"], tile["pixels"]) == ("ready", None, None, None)


def test_only_what_is_named_is_found():
    named = mirror(result=[mirrored("t1", 0)])
    assert named.find("t1", 0) == Picture("t1", 0, None, "bucket", "t1/0.png", 10, "image/png", "ab")
    assert named.find("t1", 1) is None
    assert named.find("t2", 0) is None


def test_the_address_that_an_xcom_backend_leaves_in_place_of_a_result_is_no_image_task():
    assert seen(submit(result="s3://xcoms/dag/run/task/0.json")) == []


def test_no_result_makes_more_tiles_than_can_be_shown():
    of_one = finished(n=1000)
    assert len(make_tiles([wait(result=of_one)])) == 4
    assert len(make_tiles([wait(result=[finished(f"t{number}") for number in range(MAX_TILES + 1)])])) == MAX_TILES


@pytest.mark.parametrize(
    ("known", "credits"),
    [
        ({"charged": 8}, 8),
        ({"result": "t1"}, 2),
        ({"result": finished(n=3)}, 6),
        ({"fields": {"n": 4}, "charged": 0}, 8),
    ],
)
def test_credits_of_a_run_whose_fields_and_journal_are_gone(known, credits):
    """Airflow drops the fields of older runs, and a journal in Variables is deleted once its images are delivered."""
    assert Gallery([submit(**({"result": "t1"} | known))]).credits() == Credits(charged=credits)
