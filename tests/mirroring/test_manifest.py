# SPDX-License-Identifier: Apache-2.0
"""The manifest: what it says, when it is written, and that it overwrites nobody else's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest
from mirroring_images import picture

from airflow_provider_gptimg import __version__
from airflow_provider_gptimg.airflow_compat import AirflowFailException
from airflow_provider_gptimg.exceptions import GptImgError, GptImgTaskFailedError
from airflow_provider_gptimg.mirroring.manifest import Manifest

KEY = "manifests/today.jsonl"


def context_of(run_id: str = "monday", map_index: int = -1) -> dict[str, Any]:
    """Return as much of a task instance's context as tells it from others."""
    return {"ti": SimpleNamespace(dag_id="posters", run_id=run_id, task_id="mirror", map_index=map_index)}


def rows(s3: Any, bucket: str = "images", key: str = KEY) -> list[dict[str, Any]]:
    return [json.loads(line) for line in s3.get_object(Bucket=bucket, Key=key)["Body"].read().splitlines()]


def test_a_line_tells_all_about_an_image(emulator, s3, mirror):
    content = picture((120, 80), "JPEG")
    task_id = emulator.add_task(image_bytes=content, created_at=1_776_816_723.5)
    (mirrored,) = mirror(task_id, context_of(), manifest_key=KEY)
    (row,) = rows(s3)
    assert row == {
        "task_id": task_id,
        "index": 0,
        "prompt_sha256": None,
        "uri": mirrored["uri"],
        "size": len(content),
        "sha256": mirrored["sha256"],
        "content_type": "image/jpeg",
        "width": 120,
        "height": 80,
        "created_at": "2026-04-22T00:12:03.500Z",
        "updated_at": row["updated_at"],
        "credits": 2,
        "source_url": mirrored["source_url"],
        "skipped": False,
        "c2pa": False,
        "model": "gpt-image-2",
        "generator": f"airflow-provider-gptimg {__version__}",
        "dag_id": "posters",
        "run_id": "monday",
        "airflow_task_id": "mirror",
        "map_index": -1,
    }
    assert row["updated_at"] > row["created_at"]
    assert s3.head_object(Bucket="images", Key=KEY)["ContentType"] == "application/x-ndjson"


def test_a_line_for_each_image_in_order(emulator, s3, mirror):
    task_ids = [emulator.add_task(n=3), emulator.add_task(n=1)]
    mirrored = mirror(task_ids, context_of(), manifest_key=KEY)
    assert [row["uri"] for row in rows(s3)] == [found["uri"] for found in mirrored]
    assert sum(row["credits"] for row in rows(s3)) == 8


def test_it_may_be_in_another_bucket(emulator, s3, mirror):
    s3.create_bucket(Bucket="catalogue")
    mirror(emulator.add_task(), context_of(), manifest_key="s3://catalogue/runs/1.jsonl")
    assert len(rows(s3, "catalogue", "runs/1.jsonl")) == 1


def test_a_second_attempt_writes_it_anew(emulator, s3, mirror):
    task_id = emulator.add_task(n=2)
    mirror(task_id, context_of(), manifest_key=KEY)
    first = rows(s3)
    mirror(task_id, context_of(), manifest_key=KEY)
    assert rows(s3) == [{**row, "skipped": True} for row in first]


@pytest.mark.parametrize(
    "other",
    [context_of(run_id="tuesday"), context_of(map_index=1), {}],
    ids=["another run", "another mapped instance", "nobody known"],
)
def test_nobody_elses_manifest_is_overwritten(emulator, s3, mirror, other):
    mirror(emulator.add_task(), context_of(), manifest_key=KEY)
    first, calls = rows(s3), len(emulator.calls)
    with pytest.raises(AirflowFailException, match="run_id"):
        mirror(emulator.add_task(), other, manifest_key=KEY)
    assert rows(s3) == first
    assert not [call for call in emulator.calls[calls:] if "outputs" in call.path], "an image was downloaded for it"


def test_what_nobody_known_wrote_is_nobodys(emulator, s3, mirror):
    task_id = emulator.add_task()
    mirror(task_id, {}, manifest_key=KEY)
    with pytest.raises(AirflowFailException, match="run_id"):
        mirror(task_id, {}, manifest_key=KEY)


@pytest.mark.parametrize("again", [False, True], ids=["first attempt", "second attempt"])
def test_what_somebody_writes_meanwhile_is_not_overwritten(emulator, s3, mirror, monkeypatch, again):
    """Between the look at the key and the write lie all downloads."""
    if again:
        mirror(emulator.add_task(), context_of(), manifest_key=KEY)
    write = Manifest.write

    def write_late(self: Manifest, *arguments: Any) -> None:
        s3.put_object(Bucket="images", Key=KEY, Body=b'{"by": "somebody else"}')
        write(self, *arguments)

    monkeypatch.setattr(Manifest, "write", write_late)
    with pytest.raises(GptImgError, match="written by somebody else"):
        mirror(emulator.add_task(), context_of(), manifest_key=KEY)
    assert rows(s3) == [{"by": "somebody else"}]


def test_replace_overwrites_it(emulator, s3, mirror):
    mirror(emulator.add_task(n=2), context_of(), manifest_key=KEY)
    mirror(emulator.add_task(), context_of("tuesday"), manifest_key=KEY, replace=True)
    assert len(rows(s3)) == 1


def test_there_is_none_for_a_run_that_failed(emulator, s3, mirror):
    with pytest.raises(GptImgTaskFailedError):
        mirror([emulator.add_task(), emulator.add_task(status="failed")], context_of(), manifest_key=KEY)
    keys = [found["Key"] for found in s3.list_objects_v2(Bucket="images")["Contents"]]
    assert len(keys) == 1
    assert KEY not in keys


@pytest.mark.parametrize("key", ["", " ", "s3://", "s3://bucket", "s3://bucket/", "manifests/{task_id}.jsonl", 7])
def test_what_is_no_key_is_refused_before_anything_else(emulator, s3, mirror, key):
    with pytest.raises(AirflowFailException, match="manifest_key"):
        mirror(emulator.add_task(), context_of(), manifest_key=key)
    assert not emulator.calls


def test_duckdb_reads_it(emulator, s3, mirror, tmp_path):
    """The query of the documentation, on a local copy; the API may write times with and without fractions, or none."""
    times = [1_776_816_723.5, 1_776_816_723.0]
    task_ids = [emulator.add_task(n=2, created_at=times[0]), emulator.add_task(created_at=times[1])]
    mirror(task_ids, context_of(), manifest_key="manifests/a.jsonl")
    mirror(emulator.add_task(created_at=times[1]), context_of("tuesday"), manifest_key="manifests/b.jsonl")
    for name in ("a.jsonl", "b.jsonl"):
        s3.download_file("images", f"manifests/{name}", str(tmp_path / name))
    first, *others = (tmp_path / "a.jsonl").read_text().splitlines()
    without = [
        json.dumps(json.loads(first) | {"created_at": time, "uri": f"s3://images/{number}"})
        for number, time in enumerate((None, "2026-04-22T00:12:03Z", "soon", None))
    ]
    (tmp_path / "a.jsonl").write_text("\n".join([first, *others, *without[:3]]))
    (tmp_path / "c.jsonl").write_text(without[3])
    page = Path(__file__).parents[2].joinpath("docs/classes/to-s3.md").read_text()
    query = page[page.index("WITH images") :].partition("```")[0]
    found = duckdb.sql(query.replace("s3://my-images/manifests", str(tmp_path))).fetchall()
    assert sorted((row[1], row[2]) for row in found) == [(3, 6), (5, 10)]
