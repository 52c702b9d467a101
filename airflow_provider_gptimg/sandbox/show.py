# SPDX-License-Identifier: Apache-2.0
"""Output of the demo: progress, results and errors of a run."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from airflow_provider_gptimg.api.s3_uri import split_s3_uri
from airflow_provider_gptimg.sandbox.rest import FINAL_RUN_STATES, DagRun

__all__ = [
    "answer_at",
    "batch_lines",
    "follow",
    "last_errors",
    "mirrored_objects",
    "save_images",
    "show_asset_events",
    "show_failures",
    "show_objects",
    "show_stages",
]

_PAUSE = 2.0
"""Seconds between two lines that are about credits alone: a batch spends some all the time."""
_ERROR = re.compile(r"^\S.*\n    (\w+: .*)", re.MULTILINE)
"""The exception of a log entry as `DagRun.log` writes it; its causes follow."""
_SHOWN = {
    "running": "running",
    "deferred": "waiting, holds no worker",
    "awaiting_input": "waiting for a person",
    "success": "done",
    "failed": "failed",
    "up_for_retry": "failed, is tried again",
    "upstream_failed": "not run",
    "skipped": "skipped",
}


def follow(run: DagRun, console: Console, limit: float, books: Callable[[], tuple[int, int]] | None = None) -> str:
    """Print a line whenever a stage of the run gets on or credits are spent, and return the run's final state.

    :param limit: Seconds.
    :param books: Returns the credits that the API has charged and refunded so far; None: as Airflow has recorded them.
    :raises TimeoutError: The run is not over by then.
    """
    began = time.monotonic()
    seen: dict[tuple[str, int], tuple[str, int]] = {}
    books = books or run.credits
    before = books()
    shown, shown_at = (0, 0), began
    console.print(f"{'elapsed':>9}  {'charged':>7}  {'refunded':>8}  stage")
    with console.status("") as line:
        while True:
            # Asked for first, so that its tasks are final when it is.
            state = run.state
            now = time.monotonic()
            elapsed = now - began
            charged, refunded = (total - then for total, then in zip(books(), before, strict=True))
            news = []
            for ti in run.task_instances():
                task_id, map_index, attempt = ti["task_id"], ti["map_index"], ti["try_number"]
                if ti["state"] not in _SHOWN or seen.get((task_id, map_index)) == (ti["state"], attempt):
                    continue
                seen[task_id, map_index] = (ti["state"], attempt)
                news.append(f"{_stage(ti)}: {_SHOWN[ti['state']]}")
                if ti["state"] == "awaiting_input":
                    news[-1] += f"\n{'':30} {answer_at(run, task_id)}"
            if not news and (charged, refunded) != shown and now - shown_at > _PAUSE:
                news = ["credits so far"]
            for what in news:
                console.print(f"{elapsed:7.1f} s  {charged:7}  {refunded:8}  {what}")
                shown, shown_at = (charged, refunded), now
            line.update(f"{elapsed:.0f} s, {charged} credits charged, {refunded} refunded")
            if state in FINAL_RUN_STATES:
                console.print(f"{charged} credits charged while it ran, {refunded} refunded.")
                return state
            if elapsed > limit:
                raise TimeoutError(f"{run} is not over after {limit:.0f} s")
            time.sleep(0.3)


def answer_at(run: DagRun, task_id: str) -> str:
    """Return where a person answers a task of the run, as words to be printed."""
    return f"answer at {run.url}/tasks/{task_id}/required_actions"


def show_stages(run: DagRun, console: Console) -> None:
    """Print how long each stage took."""
    table = Table("stage", box=None, pad_edge=False, padding=(0, 2))
    table.add_column("seconds", justify="right")
    for ti in run.task_instances():
        table.add_row(_stage(ti), f"{ti['duration']:.1f}" if ti["duration"] is not None else "–")
    table.add_row("whole run", f"{run.api.call('GET', run.path)['duration']:.1f}")
    console.print(table)


def mirrored_objects(run: DagRun, s3: Any) -> list[dict[str, Any]]:
    """Return what the run has mirrored: of each object its `uri`, `task_id`, `index`, `size` and `sha256`, and more.

    :param s3: A boto3 client, to read the manifest of a batch.
    """
    objects: list[dict[str, Any]] = []
    for ti in run.task_instances():
        result = run.xcom(ti["task_id"], map_index=ti["map_index"])
        if ti["operator_name"] == "GptImgToS3Operator":
            objects += result or ()
        elif _is_batch(ti) and result and result["manifest"]:
            objects += map(json.loads, _read(result["manifest"], s3).splitlines())
    return objects


def batch_lines(run: DagRun) -> Iterator[str]:
    """Yield what each batch of the run says of itself."""
    for ti in run.task_instances():
        summary = run.xcom(ti["task_id"], map_index=ti["map_index"]) if _is_batch(ti) else None
        if summary:
            ends = {"reused": "reused", "failed": "failed", "unknown": "unknown", "not_submitted": "not submitted"}
            counts = "".join(f", {summary[key]} {words}" for key, words in ends.items() if summary.get(key))
            yield (
                f"{_stage(ti)}: {summary['mirrored']} of {summary['requests']} requests mirrored{counts}; "
                f"{summary['images']} images of {summary['bytes']:,} bytes, {summary['credits']} credits; "
                f"listed in {summary['manifest'] or 'no manifest'}"
            )


def show_asset_events(run: DagRun, console: Console) -> None:
    """Print which assets the run has updated, and what was started by that."""
    for event in run.asset_events():
        extra = event["extra"] or {}
        started = ", ".join(reference["dag_id"] for reference in event["created_dagruns"])
        console.print(f"asset {event['name']}: {extra.get('images', 0)} images; has started {started or 'no DAG'}")


def show_objects(objects: list[dict[str, Any]], console: Console) -> None:
    """Print what is in S3 now."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("object", overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("sha256", overflow="fold")
    for mirrored in objects:
        table.add_row(mirrored["uri"], f"{mirrored['size']:,}", mirrored["sha256"])
    console.print(table)


def save_images(objects: list[dict[str, Any]], s3: Any, folder: Path) -> list[Path]:
    """Download the mirrored objects, and return the files.

    :param s3: A boto3 client.
    :raises RuntimeError: An object is not what its transfer said.
    """
    folder.mkdir(exist_ok=True)
    files = []
    for mirrored in objects:
        content = _read(mirrored["uri"], s3)
        if hashlib.sha256(content).hexdigest() != mirrored["sha256"]:
            raise RuntimeError(f"{mirrored['uri']} is not the image that was mirrored")
        suffix = Path(mirrored["uri"]).suffix
        path = folder / f"{mirrored['task_id']}-{mirrored['index']}{suffix}"
        path.write_bytes(content)
        files.append(path)
    return files


def show_failures(run: DagRun, console: Console) -> None:
    """Print the log of each task that failed."""
    for ti in run.task_instances():
        if ti["state"] == "failed":
            console.rule(f"log of {_stage(ti)}, attempt {ti['try_number']}", align="left")
            # As it is: a log may hold what looks like markup, and lines are not to be broken.
            console.out(run.log(ti["task_id"], map_index=ti["map_index"]), highlight=False)


def last_errors(run: DagRun) -> Iterator[str]:
    """Yield a line for each task that failed: the exception that ended it."""
    for ti in run.task_instances():
        if ti["state"] == "failed":
            errors = _ERROR.findall(run.log(ti["task_id"], map_index=ti["map_index"]))
            yield f"{_stage(ti)} failed: {errors[-1] if errors else 'its log holds no error'}"


def _is_batch(ti: dict[str, Any]) -> bool:
    return ti["operator_name"] in ("GptImgBatchToS3Operator", "@task.gptimg_batch")


def _read(uri: str, s3: Any) -> bytes:
    bucket, key = split_s3_uri(uri)
    content: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    return content


def _stage(ti: dict[str, Any]) -> str:
    index = f"[{ti['map_index']}]" if ti["map_index"] >= 0 else ""
    return f"{ti['task_id']}{index}"
