# SPDX-License-Identifier: Apache-2.0
"""A worker that is killed in the midst of a mirror leaves whole objects or none, and the next one goes on."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from mirroring_images import padded

TASKS, IMAGES_EACH, KILLS = 25, 4, 12
WORKER = Path(__file__).with_name("forking_worker.py")


@contextmanager
def forking_worker(task_ids: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the process that forks workers; they log to `folder`, and have their temporary files there."""
    spool = folder / "tmp"
    spool.mkdir()
    command = [sys.executable, str(WORKER), json.dumps(task_ids), str(folder / "result.json")]
    environment = os.environ | {"TMPDIR": str(spool)}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def say(process: subprocess.Popen[str], command: str) -> str:
    """Send a command, and return its answer; logs may stand before it."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin
    assert stdout
    stdin.write(f"{command}\n")
    stdin.flush()
    return answer(stdout)


def answer(stdout: IO[str]) -> str:
    for line in stdout:
        if line.strip() == "ready" or line.strip().lstrip("-").isdigit():
            return line.strip()
    raise AssertionError("the forking worker ended")


def stored(s3: Any) -> dict[str, dict[str, Any]]:
    return {found["Key"]: found for found in s3.list_objects_v2(Bucket="images").get("Contents", ())}


@pytest.mark.system
@pytest.mark.parametrize("seed", [2])
def test_every_object_is_exact_however_often_the_worker_is_killed(emulator, s3, tmp_path, seed):
    dice = random.Random(seed)
    expected: dict[str, bytes] = {}
    task_ids = []
    for number in range(TASKS):
        sizes = [dice.choice([20_000, 150_000, 2_000_000]) for _ in range(IMAGES_EACH)]
        contents = [padded(size, number * IMAGES_EACH + index) for index, size in enumerate(sizes)]
        task_ids.append(emulator.add_task(image_bytes=contents))
        expected |= {f"gptimg/{task_ids[-1]}/{index}.png": content for index, content in enumerate(contents)}
    progress = []

    with forking_worker(task_ids, tmp_path) as process:
        assert process.stdout
        assert answer(process.stdout) == "ready"
        for wanted in sorted(dice.sample(range(len(expected) - 20), KILLS)):
            pid = int(say(process, "start"))
            deadline = time.monotonic() + 60
            while len(stored(s3)) < wanted:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            time.sleep(dice.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            assert int(say(process, "reap")) == -signal.SIGKILL
            progress.append(stored(s3))
            assert all(found["Size"] == len(expected[key]) for key, found in progress[-1].items())
        say(process, "start")
        assert say(process, "reap") == "0", (tmp_path / "log").read_text()[-3000:]

    result = json.loads((tmp_path / "result.json").read_text())
    assert [mirrored["key"] for mirrored in result] == list(expected)
    before_the_last = progress[-1]
    assert 0 < len(before_the_last) < len(expected)
    assert {mirrored["key"] for mirrored in result if mirrored["skipped"]} >= before_the_last.keys()
    for mirrored in result:
        content = s3.get_object(Bucket="images", Key=mirrored["key"])["Body"].read()
        assert content == expected[mirrored["key"]]
        assert mirrored["sha256"] == hashlib.sha256(content).hexdigest()
    assert stored(s3).keys() == expected.keys()
    assert not s3.list_multipart_uploads(Bucket="images").get("Uploads")
    assert not list((tmp_path / "tmp").iterdir()), "a temporary file was left behind"
