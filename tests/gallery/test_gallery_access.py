# SPDX-License-Identifier: Apache-2.0
"""Who gets what from the gallery's routes on a running Airflow, and what nobody gets."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from batch_watch import watch_batch
from gallery_xcoms import HOSTILE, set_xcom
from PIL import Image

from airflow_provider_gptimg.sandbox.rest import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def _png() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(encoded, "png")
    return encoded.getvalue()


def test_who_may_read_the_dag_gets_exactly_the_object(gallery, private_run):
    for tile in gallery.tiles(private_run):
        answer = gallery.picture(private_run, tile)
        bucket, _, key = tile["uri"].removeprefix("s3://").partition("/")
        assert answer.content == gallery.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(("user", "status"), [("admin", 200), ("vera", 200), ("otto", 403), (None, 401)])
def test_who_may_read_the_dag_gets_its_images_and_nobody_else(gallery, private_run, user, status):
    tile = gallery.tiles(private_run)[0]
    known = gallery.picture(private_run, tile).headers["etag"]
    tiles = {"run_id": private_run.run_id}
    picture = tiles | {"image_task": tile["image_task"], "index": 0, **tile["source"]}
    pick = tiles | {"pick": f"{tile['source']['task_id']}/-1/{tile['image_task']}/0"}
    with gallery.http(user) as client:
        got = {
            "page": client.get("/gptimg/"),
            "tiles": client.get("/gptimg/dags/gallery_private/tiles", params=tiles),
            "tiles of a task": client.get("/gptimg/dags/gallery_private/tiles", params=tiles | {"task_id": "mirror"}),
            "picture": client.get("/gptimg/dags/gallery_private/picture", params=picture),
            "known picture": client.get(
                "/gptimg/dags/gallery_private/picture", params=picture, headers={"if-none-match": known}
            ),
            "zip": client.get("/gptimg/dags/gallery_private/zip", params=pick),
            "spending": client.get("/gptimg/dags/gallery_private/spending"),
            "spending of the run": client.get("/gptimg/dags/gallery_private/spending", params=tiles),
            "links": client.get(f"/api/v2{private_run.path}/taskInstances/mirror/links", params={"map_index": -1}),
        }
    statuses = {name: answer.status_code for name, answer in got.items()}
    may_see = dict.fromkeys(got, status) | {"page": 200} | ({"known picture": 304} if status == 200 else {})
    assert statuses == may_see
    for name, answer in got.items():
        if statuses[name] >= 400:
            assert b"PNG" not in answer.content
            assert tile["image_task"] not in answer.text


def test_who_may_write_xcoms_opens_no_door_by_them(gallery, private_run):
    """The API server's own role may read what the author of another DAG names, and must not show it."""
    run = gallery.start("gallery_own")
    assert run.wait() == "failed"
    private = gallery.tiles(private_run)[0]
    bucket, _, key = private["uri"].removeprefix("s3://").partition("/")
    marks = gallery.s3.head_object(Bucket=bucket, Key=key)["Metadata"]
    assert marks.pop("gptimg-dag-id") == "gallery_private"
    gallery.s3.copy_object(
        Bucket=bucket, Key="unmarked.png", CopySource=f"{bucket}/{key}", Metadata=marks, MetadataDirective="REPLACE"
    )
    gallery.s3.put_object(Bucket=bucket, Key="salaries.csv", Body=b"secret")
    wanted = (
        private["uri"],
        f"s3://{bucket}/unmarked.png",
        f"s3://{bucket}/salaries.csv",
        "s3://nowhere/a.png",
        "s3://../x",
    )
    texts = {}
    with gallery.http("otto") as otto:
        for uri in wanted:
            set_xcom(run, "mirror", [{"uri": uri, "task_id": private["image_task"], "index": 0}], otto)
            query = {"run_id": run.run_id, "task_id": "mirror", "image_task": private["image_task"], "index": 0}
            answers = [
                otto.get("/gptimg/dags/gallery_own/picture", params=query),
                otto.get(
                    "/gptimg/dags/gallery_own/zip",
                    params={"run_id": run.run_id, "pick": f"mirror/-1/{private['image_task']}/0"},
                ),
            ]
            assert [answer.status_code for answer in answers] == [404, 404]
            assert len({answer.text for answer in answers}) == 1
            texts[uri] = answers[0].text
    assert "mirrored by a release before" in texts.pop(f"s3://{bucket}/unmarked.png")
    assert len(set(texts.values())) == 1, "no text tells what exists"


def test_a_trickling_store_does_not_hold_up_the_api_server(gallery):
    """What is asserted comes while a hundred pictures hang."""
    run = gallery.start("gallery_slow")
    assert run.wait() == "failed"
    objects = [
        {"uri": f"s3://images/gallery_slow/hang/{index}.png", "task_id": "t1", "index": index} for index in range(100)
    ]
    set_xcom(run, "mirror", objects)
    leave = Event()

    def look(index: int) -> int:
        query = {"run_id": run.run_id, "task_id": "mirror", "image_task": "t1", "index": index}
        with (
            gallery.http("vera") as client,
            client.stream("GET", "/gptimg/dags/gallery_slow/picture", params=query) as got,
        ):
            leave.wait(60)
            return int(got.status_code)

    with ThreadPoolExecutor(100) as pool, gallery.http("vera") as client:
        viewers = [pool.submit(look, index) for index in range(100)]
        until(lambda: gallery.slow.under_way, 60, "the first picture")
        for _ in range(10):
            assert client.get("/api/v2/version").status_code == 200
            assert client.get("/api/v2/dags").status_code == 200
        leave.set()
        assert {viewer.result() for viewer in viewers} <= {200, 503}
    until(lambda: not gallery.slow.under_way, 60, "the end of all pictures")
    assert gallery.tiles(run)


def test_a_dag_does_not_open_the_door_to_another(gallery, private_run, hosted_run):
    tile = gallery.tiles(private_run)[0]
    query = {"run_id": private_run.run_id, "image_task": tile["image_task"], "index": 0, **tile["source"]}
    with gallery.http("otto") as client:
        for dag_id in ("gallery_hosted", "~"):
            for more in ({}, {"dag_id": "gallery_private"}):
                answer = client.get(f"/gptimg/dags/{dag_id}/picture", params=query | more)
                assert answer.status_code == 404
                tiles = client.get(f"/gptimg/dags/{dag_id}/tiles", params={"run_id": private_run.run_id} | more)
                assert tiles.json()["tiles"] == []


@pytest.mark.parametrize(
    "other",
    [
        {"map_index": 0},
        {"task_id": "wait"},
        {"task_id": "../mirror"},
        {"image_task": "another"},
        {"index": 2},
        {"run_id": "another"},
    ],
    ids=str,
)
def test_no_other_place_names_a_picture(gallery, private_run, other):
    tile = gallery.tiles(private_run)[0]
    query = {"run_id": private_run.run_id, "image_task": tile["image_task"], "index": 0, **tile["source"]} | other
    with gallery.http("vera") as client:
        answer = client.get("/gptimg/dags/gallery_private/picture", params=query)
    if other == {"task_id": "wait"}:
        assert answer.status_code == 200, "a wait names what the vendor hosts"
    else:
        assert answer.status_code == 404


def test_what_is_private_stays_out_of_shared_and_stale_caches(gallery, private_run):
    tile = gallery.tiles(private_run)[0]
    assert gallery.picture(private_run, tile).headers["cache-control"] == "private, no-cache"
    with gallery.http("vera") as client:
        answer = client.get("/gptimg/dags/gallery_private/tiles", params={"run_id": private_run.run_id})
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in gallery.picture(private_run, tile, "otto").headers


def test_an_old_run_is_shown_after_airflow_has_dropped_its_rendered_fields(gallery, private_run):
    """By then only later runs tell which AWS connection the task uses."""
    for _ in range(2):
        run = gallery.start("gallery_private", prompt="A later run")
        gallery.emulator.finish(gallery.submitted("A later run"))
        assert run.wait() == "success"
    until(lambda: private_run.task_instance("mirror")["rendered_fields"] == {}, 60, "the fields to be dropped")
    tile = gallery.tiles(private_run)[0]
    assert tile["prompt"] == HOSTILE
    assert gallery.picture(private_run, tile).status_code == 200


def test_an_unchanged_picture_is_not_sent_again(gallery, private_run):
    tile = gallery.tiles(private_run)[0]
    etag = gallery.picture(private_run, tile).headers["etag"]
    answer = gallery.picture(private_run, tile, **{"if-none-match": etag})
    assert (answer.status_code, answer.content) == (304, b"")


def test_a_hosted_picture_comes_through_airflow(gallery, hosted_run):
    good, refused = gallery.tiles(hosted_run)
    assert (good["state"], refused["state"]) == ("ready", "failed")
    answer = gallery.picture(hosted_run, good)
    assert answer.content.startswith(b"\x89PNG")
    assert "content-disposition" in answer.headers


def test_no_address_signature_or_key_reaches_the_browser(gallery, private_run, hosted_run):
    for run in (private_run, hosted_run):
        with gallery.http("vera") as client:
            text = client.get(f"/gptimg/dags/{run.dag_id}/tiles", params={"run_id": run.run_id}).text
        for secret in ("http", "Signature", "X-Amz", gallery.emulator.api_key):
            assert secret not in text


def test_an_edited_xcom_gives_no_foreign_object(gallery):
    """Who may edit XComs could name any object or host in one."""
    run = gallery.start("gallery_private", prompt="To be forged")
    gallery.emulator.finish(gallery.submitted("To be forged"))
    assert run.wait() == "success"
    gallery.s3.put_object(Bucket="gallery", Key="secret.png", Body=_png(), ContentType="image/png")
    own = gallery.tiles(run)[0]
    forged = {**own, "uri": "s3://gallery/secret.png", "task_id": own["image_task"], "source_url": "x"}
    set_xcom(run, "mirror", [forged])
    assert gallery.tiles(run)[0]["uri"] == "s3://gallery/secret.png"
    answer = gallery.picture(run, own)
    assert (answer.status_code, b"PNG" in answer.content) == (404, False)

    elsewhere = f"{gallery.s3.meta.endpoint_url}/gallery/secret.png"
    task = {"task_id": own["image_task"], "status": "completed", "images": [{"url": elsewhere}]}
    set_xcom(run, "mirror", task)
    answer = gallery.picture(run, own)
    assert (answer.status_code, b"PNG" in answer.content) == (502, False)


def test_an_object_that_is_no_image_is_not_served(gallery):
    run = gallery.start("gallery_private", prompt="To be overwritten")
    gallery.emulator.finish(gallery.submitted("To be overwritten"))
    assert run.wait() == "success"
    tile = gallery.tiles(run)[0]
    key = tile["uri"].removeprefix("s3://gallery/")
    marks = gallery.s3.head_object(Bucket="gallery", Key=key)["Metadata"]
    page = b"<!doctype html><script>alert(1)</script>"
    gallery.s3.put_object(Bucket="gallery", Key=key, Body=page, Metadata=marks, ContentType="text/html")
    answer = gallery.picture(run, tile)
    assert (answer.status_code, b"script" in answer.content) == (502, False)


def test_an_odd_xcom_leaves_the_rest_of_the_run_in_sight(gallery):
    run = gallery.start("gallery_private", prompt="With odd XComs")
    gallery.emulator.finish(gallery.submitted("With odd XComs"))
    assert run.wait() == "success"
    objects = [tile["uri"] for tile in gallery.tiles(run)]
    assert len(objects) == 2
    for odd in ("A" * (9 << 20), [[]] * 100_000, "<script>", {"task_id": "..", "uri": "s3://", "index": 0}):
        set_xcom(run, "wait", odd)
        tiles = gallery.tiles(run)
        assert [tile["uri"] for tile in tiles if tile.get("uri")] == objects, str(odd)[:80]
        assert gallery.picture(run, tiles[0]).status_code == 200
    own = {"uri": objects[0], "task_id": tiles[0]["image_task"], "index": 0}
    set_xcom(run, "mirror", [own, "A" * (7 << 20)])
    assert [tile["uri"] for tile in gallery.tiles(run) if tile.get("uri")] == objects[:1]
    set_xcom(run, "mirror", [own, "A" * (9 << 20)])
    assert all(tile.get("uri") is None for tile in gallery.tiles(run)), "more than can be read is not read"


def test_the_page_itself_is_static_and_strict(gallery):
    with gallery.http(None) as client:
        for path in ("", "gallery.js", "gallery.css", "icon.svg"):
            answer = client.get(f"/gptimg/{path}")
            assert answer.status_code == 200
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
        for outside in (
            "%2e%2e/app.py",
            "..%2fapp.py",
            "%2e%2e%2f%2e%2e%2f__init__.py",
            "/etc/passwd",
            "%2fetc%2fpasswd",
        ):
            assert client.get(f"/gptimg/{outside}").status_code == 404
        assert client.get("/gptimg/openapi.json").status_code == 404


def test_links_of_each_task(gallery, private_run):
    """Only those that lead somewhere: the gallery is a tab of each task instance already."""

    def links(task_id: str) -> dict[str, str]:
        path = f"{private_run.path}/taskInstances/{task_id}/links"
        found = private_run.api.call("GET", path, map_index=-1)["extra_links"]
        return {name: url for name, url in found.items() if url}  # Airflow 3.1 names those that have none, too

    hosted = private_run.xcom("wait")["images"][0]["url"]
    assert links("submit") == {}
    assert links("wait") == {"First image": hosted}
    assert links("mirror") == {}, "nobody else reaches the store of this machine"


def test_a_batch_under_way_shows_each_request(gallery):
    watch_batch(gallery)
