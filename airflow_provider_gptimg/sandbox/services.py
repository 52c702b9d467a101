# SPDX-License-Identifier: Apache-2.0
"""Services for the sandbox: stand-ins on this machine, or the real API and the real S3."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.sandbox.s3 import ACCESS_KEY, S3Server

if TYPE_CHECKING:
    from airflow_provider_gptimg.emulator import Emulator

__all__ = ["Services", "books", "real_services", "stand_ins"]

_BUCKET = "gptimg-demo"
_REFERENCES = ("chair", "room")


@dataclass(frozen=True)
class Services:
    """An API that makes images, and an S3 that stores them.

    :param names: A description of both, to be printed.
    :param addresses: Addresses by name, to be printed.
    :param bucket: Where the example DAGs put their images.
    :param connections: Airflow connections to them as JSON, by id; one holds the key.
    :param s3: A boto3 client.
    :param settings: Variables for Airflow's environment.
    :param emulator: The stand-in for the API; None: it is the real one.
    """

    names: str
    addresses: dict[str, str]
    bucket: str
    connections: dict[str, str] = field(repr=False)
    s3: Any = field(repr=False)
    settings: dict[str, str] = field(default_factory=dict)
    emulator: Emulator | None = field(default=None, repr=False)

    @property
    def books(self) -> Callable[[], tuple[int, int]] | None:
        """A function that returns the credits charged and refunded so far; None: the real API does not report them."""
        emulator = self.emulator
        return None if emulator is None else lambda: books(emulator)


def put_files(folder: Path, s3: Any) -> list[str]:
    """Upload the files of `folder`, each to the bucket that the first part of its path names; return their URIs.

    :param s3: A boto3 client.
    """
    uris = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        bucket, _, key = path.relative_to(folder).as_posix().partition("/")
        if key:
            s3.upload_file(str(path), bucket, key)
            uris.append(f"s3://{bucket}/{key}")
    return uris


@contextmanager
def stand_ins(speed: float) -> Iterator[Services]:
    """Run the emulator and an S3 in memory, which holds the reference images of the examples.

    :param speed: How many times faster than the real API's 45–60 s generations are.
    """
    from airflow_provider_gptimg.emulator import Emulator
    from airflow_provider_gptimg.emulator.pictures import draw
    from airflow_provider_gptimg.emulator.state import poll_schedule

    extra = poll_schedule(speed)
    with Emulator(speed=speed, extra=extra) as emulator, S3Server(_BUCKET, creates_buckets=True) as server:
        s3 = server.client()
        for name in _REFERENCES:
            picture = draw(f"a {name}", 1, 1, "reference", None, "png")
            s3.put_object(Bucket=_BUCKET, Key=f"references/{name}.png", Body=picture, ContentType="image/png")
        yield Services(
            names=f"a stand-in for the API, {speed:g} times as fast, and an S3 in memory: no account, no cost",
            addresses={
                "API": f"{emulator.base_url} (connection gptimg_default, key {emulator.api_key}; its ledger is at "
                "/_emulator/ledger)",
                "S3": f"{server.endpoint_url} (connection aws_default; access key and secret: {ACCESS_KEY})",
                "Bucket": f"{_BUCKET}; another one is created when something is written to it",
            },
            bucket=_BUCKET,
            connections={"gptimg_default": emulator.connection_json, "aws_default": server.connection_json},
            s3=s3,
            # Reuse and the table of spending need the journal in S3.
            settings={"AIRFLOW__GPTIMG__JOURNAL": f"s3://{_BUCKET}/journal"},
            emulator=emulator,
        )


def books(emulator: Emulator) -> tuple[int, int]:
    """Return the credits that an emulator has charged and refunded."""
    sums = {"charge": 0, "refund": 0}
    for entry in emulator.ledger:
        sums[entry.kind] += entry.credits
    return sums["charge"], sums["refund"]


@contextmanager
def real_services(api_key: str, bucket: str) -> Iterator[Services]:
    """Use the real API, which costs credits, and the S3 that boto3 finds by itself.

    :param bucket: Must exist, and be writable with the credentials of the environment.
    """
    import boto3

    yield Services(
        names=f"the real API, which costs credits, and the bucket {bucket} in the real S3",
        addresses={
            "API": "https://gptimg.co (connection gptimg_default)",
            "S3": "as boto3 finds it (connection aws_default)",
            "Bucket": bucket,
        },
        bucket=bucket,
        connections={
            "gptimg_default": json.dumps({"conn_type": "gptimg", "password": api_key}),
            "aws_default": json.dumps({"conn_type": "aws"}),
        },
        s3=boto3.client("s3"),
    )
