# SPDX-License-Identifier: Apache-2.0
"""What a mirror leaves behind for others: asset events, hook-level lineage, OpenLineage; one run of a real DAG."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from airflow.sdk.execution_time.context import OutletEventAccessors
from airflow.sdk.lineage import HookLineageCollector

from airflow_provider_gptimg.airflow_compat import Asset
from airflow_provider_gptimg.mirroring import lineage
from airflow_provider_gptimg.mirroring.destination import KeyPattern
from airflow_provider_gptimg.mirroring.lineage import describe_outlets
from airflow_provider_gptimg.mirroring.objects import MirroredObject

DAG_FILE = Path(__file__).with_name("lineage_dag.py")

# Airflow collects hook-level lineage only where a plugin reads it.
READER = """
from airflow_names import HookLineageReader

from airflow_provider_gptimg.airflow_compat import AirflowPlugin

class Reader(AirflowPlugin):
    name = "reader"
    hook_lineage_readers = [HookLineageReader]
"""


@pytest.fixture(scope="module")
def run(airflow_db: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from airflow_provider_gptimg.emulator import Emulator
    from airflow_provider_gptimg.sandbox import S3Server

    folder = tmp_path_factory.mktemp("lineage")
    for name, content in {"dags": DAG_FILE.read_text(), "plugins": READER}.items():
        (folder / name).mkdir()
        (folder / name / DAG_FILE.name).write_text(content)
    with Emulator(speed=100) as emulator, S3Server("images") as s3:
        task_ids = [emulator.add_task(n=2), emulator.add_task(formats=["webp"])]
        env = os.environ | {
            "AIRFLOW_HOME": airflow_db,
            "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(folder / "plugins"),
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
                {"type": "file", "log_file_path": str(folder / "openlineage.jsonl"), "append": True}
            ),
            "AIRFLOW_CONN_GPTIMG_DEFAULT": emulator.connection_json,
            "AIRFLOW_CONN_AWS_DEFAULT": s3.connection_json,
            "IMAGE_TASKS": " ".join(task_ids),
        }
        command = [sys.executable, str(folder / "dags" / DAG_FILE.name), str(folder / "result.json")]
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return {
        **json.loads((folder / "result.json").read_text()),
        "base_url": emulator.base_url,
        "openlineage": folder / "openlineage.jsonl",
    }


@pytest.mark.parametrize(
    ("asset", "aliases"),
    [("posters", []), ("thumbnails", []), ("s3://images/campaigns/summer%20time", ["summer"])],
    ids=["asset", "reference", "alias"],
)
def test_asset_event_names_the_objects(run, asset, aliases):
    uris = [mirrored["uri"] for mirrored in run["objects"]]
    assert len(uris) == 3
    assert run["events"][asset] == {"aliases": aliases, "extra": {"uris": uris, "images": 3}}


def test_hook_lineage_goes_from_image_to_object(run):
    assert run["inputs"] == [mirrored["source_url"] for mirrored in run["objects"]]
    assert run["outputs"] == [mirrored["uri"] for mirrored in run["objects"]]


def test_openlineage_event_names_the_folders(run):
    why = "the oldest OpenLineage provider does not load on Airflow 3.3: it has no airflow.models.mappedoperator"
    pytest.importorskip("airflow.providers.openlineage.extractors", exc_type=ImportError, reason=why)
    (event,) = [
        event
        for event in map(json.loads, run["openlineage"].read_text().splitlines())
        if event["eventType"] == "COMPLETE" and event["job"]["name"] == "mirroring_lineage.mirror"
    ]
    assert [(dataset["namespace"], dataset["name"]) for dataset in event["inputs"]] == [
        (run["base_url"], "gpt-image-2-outputs")
    ]
    (output,) = event["outputs"]
    assert (output["namespace"], output["name"]) == ("s3://images", "campaigns/summer time")
    statistics = output["outputFacets"]["outputStatistics"]
    sizes = [mirrored["size"] for mirrored in run["objects"]]
    assert (statistics["fileCount"], statistics["size"]) == (3, sum(sizes))


@pytest.mark.parametrize(("manifest", "number"), [("s3://m/run.jsonl", 100), ("s3://m/run.jsonl", 101), (None, 101)])
def test_asset_event_of_many_objects_leaves_them_to_the_manifest_only(manifest, number):
    posters, events = Asset("posters", uri="s3://images/posters"), OutletEventAccessors()
    objects = [an_object(f"{index}.png") for index in range(number)]
    describe_outlets(events, [posters], KeyPattern("{index}{ext}", "images"), objects, manifest)
    uris = {} if manifest and number > 100 else {"uris": [mirrored.uri for mirrored in objects]}
    assert events[posters].extra == {"images": number} | ({"manifest": manifest} if manifest else {}) | uris


def an_object(key: str) -> MirroredObject:
    return MirroredObject("images", key, "t", 0, "https://gptimg.co/0.png", "image/png", 1, "00", "", skipped=False)


@pytest.mark.parametrize(
    ("folder", "uri"),
    [
        ("short/été", "s3://images/short/%C3%A9t%C3%A9"),
        ("画像" * 90 + "/最終", "s3://images"),
        ("a/" + "画" * 185, "s3://images/a"),
        ("a/b/" + "/".join(["画" * 40] * 4), "s3://images/a/b/" + "/".join(["%E7%94%BB" * 40] * 4)),
    ],
    ids=["short", "long", "long below a short one", "many"],
)
def test_an_alias_stands_for_the_nearest_folder_whose_uri_airflow_takes(folder, uri):
    from airflow.sdk import AssetAlias

    pattern = KeyPattern(f"{folder}/{{task_id}}{{ext}}", "images")
    alias, events = AssetAlias("run"), OutletEventAccessors()
    describe_outlets(events, [alias], pattern, [], None)
    (event,) = events[alias].asset_alias_events
    assert event.dest_asset_key.uri.rstrip("/") == uri.rstrip("/")


@pytest.mark.parametrize("key", ["what?/0.png", "a#b/0.png", "100%/0.png", "été/0.png", "summer time/0.png"])
def test_hook_lineage_has_the_whole_key(key, monkeypatch):
    collector = HookLineageCollector()
    monkeypatch.setattr(lineage, "get_hook_lineage_collector", lambda: collector)
    lineage.report_to_collector(object(), [an_object(key)])
    (output,) = collector.collected_assets.outputs
    assert unquote(output.asset.uri) == f"s3://images/{key}"
