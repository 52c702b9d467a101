# SPDX-License-Identifier: Apache-2.0
"""S3 servers that are not moto: SeaweedFS, and s3rver where `make stores` has installed it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

__all__ = ["STORES", "running"]

STORES = {
    "seaweedfs": "weed",
    "s3rver": "s3rver",  # it ignores conditions
}
"""Names of real S3 servers, and of their commands."""

HINTS = {"seaweedfs": "its package is for Linux only", "s3rver": "`make stores` installs it"}

KEY, SECRET = "S3RVER", "S3RVER"


def _command(name: str) -> str:
    beside = Path(sys.executable).parent
    places = [str(beside), str(beside.parent / "stores/node_modules/.bin"), os.environ.get("PATH", "")]
    found = shutil.which(STORES[name], path=os.pathsep.join(places))
    if not found:
        pytest.skip(f"{name} is not installed: {HINTS[name]}")
    return found


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def running(name: str, folder: Path) -> Iterator[str]:
    """Run a store that keeps its data below `folder`; yields its URL."""
    command = _command(name)
    ports = _free_ports(10)
    if name == "s3rver":
        arguments = ["-d", str(folder), "-a", "127.0.0.1", "-p", str(ports[0]), "-s", "--no-vhost-buckets"]
    else:
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        options = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc"]
        options += ["filer.port", "filer.port.grpc", "s3.port.iceberg", "s3.port.lance"]
        arguments = ["server", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", f"-s3.config={config}"]
        arguments += [f"-{option}={port}" for option, port in zip(options, ports, strict=True)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([command, *arguments], stdout=log, stderr=log, cwd=folder)
    try:
        yield _when_ready(process, ports[0], folder / "log")
    finally:
        process.kill()  # SeaweedFS takes longer than ten seconds to end by itself
        process.wait()


def _when_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> str:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    url = f"http://127.0.0.1:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            client.create_bucket(Bucket="images")
            client.put_object(Bucket="images", Key="ready", Body=b"")
            client.delete_object(Bucket="images", Key="ready")
            return url
        except (ClientError, BotoCoreError):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
            time.sleep(0.2)
