# SPDX-License-Identifier: Apache-2.0
"""The example DAGs on a running Airflow, all at once, with a person's answers and the runs that assets start."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.emulator.pictures import draw
from airflow_provider_gptimg.sandbox import DagRun, S3Server, StandaloneAirflow, show
from airflow_provider_gptimg.sandbox.rest import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

FOLDER = Path(__file__).parents[2] / "example_dags"
# Runs that are triggered are told theirs; one that an asset starts has the params' defaults.
BUCKET, DEFAULT_BUCKET = "bucket-of-the-examples", "gptimg-demo"
REFERENCES = ("references/chair.png", "references/room.png")
PRODUCT_SHOT = "This product on white, evenly lit, for a catalogue"

# For each example: the prompts of its submits with their number of images, and where the images go.
EXAMPLES = {
    "example_gptimg_to_s3": (
        {"A lighthouse at dawn, in watercolour": 2},
        r"gptimg/{task_id}/{index}\.png",
    ),
    "example_gptimg_campaign": (
        {
            "A farmers' market in October, gouache": 1,
            "Apples on a doorstep, gouache": 1,
            "A village under the first snow, linocut": 1,
            "Skates by the door, linocut": 1,
        },
        r"campaigns/(harvest|first_snow)/\d{{4}}-\d\d-\d\d/{task_id}-{index}\.png",
    ),
    "example_gptimg_edit": (
        {"The chair of the first picture in the room of the second": 1},
        r"edits/{task_id}/{index}\.png",
    ),
    "example_gptimg_batch": (
        {
            f"{product}, {view}, product photo": 1
            for product in ("A teapot", "A stool", "A lantern", "A kite", "A clock", "A canoe")
            for view in ("from the front", "in use")
        },
        r"catalogue/{task_id}-{index}\.png",
    ),
    "example_gptimg_on_asset": ({PRODUCT_SHOT: 1}, r"product-shots/{task_id}\.png"),
}
APPROVAL = "example_gptimg_approval"


@dataclass(frozen=True)
class Examples:
    """A run of each example, and what the runs talk to."""

    runs: Mapping[str, DagRun]
    airflow: StandaloneAirflow
    emulator: Emulator
    s3: Any

    def read(self, uri: str) -> bytes:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        assert bucket == BUCKET
        return self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()

    def answer(self, run: DagRun, *options: str) -> dict[str, Any]:
        """Answer what `choose` asks, and return the question."""
        run.wait_for("choose", "awaiting_input", timeout=200)
        # Before the scheduler knows that the asking process has ended, Airflow would take the answered task for lost.
        ended = f"TaskInstance Finished: dag_id={run.dag_id}, task_id=choose, run_id={run.run_id}"
        until(lambda: ended in self.airflow.output("scheduler", 10_000), 120, "the scheduler to notice")
        path = f"{run.path}/taskInstances/choose/-1/hitlDetails"
        asked: dict[str, Any] = run.api.call("GET", path)
        run.api.call("PATCH", path, {"chosen_options": options, "params_input": {}})
        return asked

    def check_objects(self, run: DagRun, prompts: dict[str, int], key_pattern: str) -> list[str]:
        """Check that all images of these prompts were paid for once and are in S3; return their URIs."""
        assert run.wait() == "success", "\n".join(run.log(ti["task_id"]) for ti in run.task_instances())
        objects = show.mirrored_objects(run, self.s3)
        tasks = {task_id: self.emulator.task(task_id) for task_id in {found["task_id"] for found in objects}}
        assert {task.prompt: task.n for task in tasks.values()} == prompts
        assert len(objects) == sum(task.n for task in tasks.values())
        for task in tasks.values():
            charges = [entry.credits for entry in self.emulator.ledger if entry.task_id == task.task_id]
            assert charges == [2 * task.n]
        for found in objects:
            content = self.read(found["uri"])
            assert content == tasks[found["task_id"]].images[found["index"]]
            assert (found["size"], found["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
            pattern = key_pattern.format(task_id=found["task_id"], index=found["index"])
            assert re.fullmatch(f"s3://{BUCKET}/{pattern}", found["uri"])
        return [found["uri"] for found in objects]


@pytest.fixture(scope="module")
def examples(_airflow: StandaloneAirflow, _emulator_server: Emulator, _s3_server: S3Server) -> Examples:
    """All examples, triggered and not waited for."""
    _emulator_server.reset()
    s3 = _s3_server.client()
    for bucket in (BUCKET, DEFAULT_BUCKET):
        s3.create_bucket(Bucket=bucket)
    for key in REFERENCES:
        s3.put_object(Bucket=BUCKET, Key=key, Body=draw(key, 1, 1, "reference", None, "png"), ContentType="image/png")
    # First the one that is answered while the others go on.
    runs = {dag_id: _airflow.trigger(dag_id, {"bucket": BUCKET}) for dag_id in (APPROVAL, *EXAMPLES)}
    return Examples(runs, _airflow, _emulator_server, s3)


def test_all_examples_are_run():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*EXAMPLES, APPROVAL}


def test_a_person_picks_variants_and_asks_for_others(examples):
    styles = ("linocut", "watercolour", "gouache")
    prompts = {style: f"A ferry in the fog, {style} poster" for style in styles}

    first = examples.runs[APPROVAL]
    asked = examples.answer(first, "linocut", "Make others")
    assert (asked["options"], asked["multiple"]) == ([*styles, "Make others"], True)
    shown = {style: first.xcom(style)["media_url"] for style in styles}
    assert re.findall(r"!\[(\w+)\]\((\S+)\)", asked["body"]) == list(shown.items())
    examples.check_objects(first, {prompts["linocut"]: 1}, r"posters/{task_id}-linocut\.png")
    states = {ti["task_id"]: ti["state"] for ti in first.task_instances()}
    assert states["mirror_watercolour"] == states["mirror_gouache"] == "skipped"

    (second,) = first.started_runs()
    examples.answer(second, "gouache")
    assert {second.xcom(style)["media_url"] for style in styles}.isdisjoint(shown.values())
    examples.check_objects(second, {prompts["gouache"]: 1}, r"posters/{task_id}-gouache\.png")
    assert second.started_runs() == []
    made = [task.prompt for task in examples.emulator.tasks if task.prompt in prompts.values()]
    assert sorted(made) == sorted([*prompts.values()] * 2)


@pytest.mark.parametrize("dag_id", EXAMPLES)
def test_it_runs_from_the_prompt_to_the_objects(dag_id, examples):
    examples.check_objects(examples.runs[dag_id], *EXAMPLES[dag_id])


def test_the_assets_of_the_campaigns_start_a_dag_that_reads_their_events(examples):
    run = examples.runs["example_gptimg_campaign"]
    assert run.wait() == "success"
    (publish,) = run.started_runs()
    assert (publish.dag_id, publish.wait()) == ("example_gptimg_campaign_publish", "success")
    events = {event["name"]: event["extra"] for event in run.asset_events()}
    assert events.keys() == {"gptimg_campaign_harvest", "gptimg_campaign_first_snow"}
    for name, extra in events.items():
        campaign = name.removeprefix("gptimg_campaign_")
        mirrored = run.xcom(f"{campaign}.mirror")
        assert extra["uris"] == [found["uri"] for found in mirrored]
        rows = [json.loads(line) for line in examples.read(extra["manifest"]).splitlines()]
        assert [(row["uri"], row["sha256"]) for row in rows] == [(found["uri"], found["sha256"]) for found in mirrored]
        assert json.loads(examples.read(f"s3://{BUCKET}/campaigns/current/{name}.json")) == extra


def test_an_event_about_photos_starts_a_run_and_its_product_shots_another(examples):
    api = examples.airflow.api
    photos = [f"s3://{BUCKET}/{key}" for key in REFERENCES]
    (asset,) = api.call("GET", "/assets", dag_ids="example_gptimg_on_asset", name_pattern="gptimg_photos")["assets"]
    event = api.call("POST", "/assets/events", {"asset_id": asset["id"], "extra": {"uris": photos}})

    def started() -> list[dict[str, Any]]:
        (found,) = [found for found in api.asset_events(asset_id=asset["id"]) if found["id"] == event["id"]]
        return found["created_dagruns"]

    (reference,) = until(started, 200, "the run that the photos start")
    run = DagRun(api, reference["dag_id"], reference["run_id"])
    assert run.wait() == "success"
    assert run.xcom("photos") == photos
    shots = [run.xcom("product_shot", map_index=index)["task_id"] for index in range(2)]
    for task_id, key in zip(shots, REFERENCES, strict=True):
        task = examples.emulator.task(task_id)
        assert (task.type, task.prompt) == ("image-to-image", PRODUCT_SHOT)
        (url,) = task.request["image_urls"]
        assert f"/{BUCKET}/{key}?" in url

    (announce,) = run.started_runs()
    assert (announce.dag_id, announce.wait()) == ("example_gptimg_on_asset_announce", "success")
    uris = [found["uri"] for found in run.xcom("mirror")]
    assert uris == [f"s3://{DEFAULT_BUCKET}/product-shots/{task_id}.png" for task_id in shots]
    assert announce.xcom("message") == "\n".join(["New product shots:", *uris])


def test_the_sandbox_tells_what_a_batch_and_its_images_are(examples):
    run = examples.runs["example_gptimg_batch"]
    assert run.wait() == "success"
    console = Console(record=True, markup=False, width=200)
    show.show_objects(show.mirrored_objects(run, examples.s3), console)
    for line in show.batch_lines(run):
        console.print(line)
    told = console.export_text()
    assert len(re.findall(rf"^s3://{BUCKET}/catalogue/\S+\.png +[\d,]+ +[0-9a-f]{{64}}$", told, re.M)) == 12
    assert re.search(
        r"^catalogue: 12 of 12 requests mirrored; 12 images of [\d,]+ bytes, 24 credits; "
        rf"listed in s3://{BUCKET}/catalogue/\S+\.jsonl$",
        told,
        re.M,
    )
