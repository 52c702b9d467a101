# SPDX-License-Identifier: Apache-2.0
"""Services for the demo's DAG: stand-ins on this machine, or the real API and the real S3."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.sandbox.s3 import S3Server

if TYPE_CHECKING:
    from airflow_provider_gptimg.emulator import Emulator

__all__ = ["Services", "books", "real_services", "stand_ins"]

_BUCKET = "gptimg-demo"
_REFERENCES = ("chair", "room")


@dataclass(frozen=True)
class Services:
    """An API that makes images and an S3 that takes them.

    :param names: What they are, for people.
    :param bucket: Where the images go.
    :param connections: Environment that makes them Airflow's default connections; holds the key.
    :param s3: A boto3 client.
    :param books: The credits that the API has charged and refunded so far; None: it does not tell.
    """

    names: str
    bucket: str
    connections: dict[str, str] = field(repr=False)
    s3: Any = field(repr=False)
    books: Callable[[], tuple[int, int]] | None = field(default=None, repr=False)


@contextmanager
def stand_ins(speed: float) -> Iterator[Services]:
    """Run the emulator and an S3 in memory, which holds the reference images of the examples.

    :param speed: How many times faster than the real API's 45–60 s generations are.
    """
    from airflow_provider_gptimg.emulator import Emulator
    from airflow_provider_gptimg.emulator.pictures import draw

    # Polled as much faster, but for the moments that Airflow needs to defer a task.
    schedule = {"first_poll_after": 39.5 / speed, "poll_interval": max(1.0, 5 / speed)}
    with Emulator(speed=speed, extra=schedule) as emulator, S3Server(_BUCKET) as server:
        s3 = server.client()
        for name in _REFERENCES:
            picture = draw(f"a {name}", 1, 1, "reference", None, "png")
            s3.put_object(Bucket=_BUCKET, Key=f"references/{name}.png", Body=picture, ContentType="image/png")
        yield Services(
            names=f"a stand-in of the API, {speed:g} times as fast, and an S3 in memory: no account, no cost",
            bucket=_BUCKET,
            connections={
                "AIRFLOW_CONN_GPTIMG_DEFAULT": emulator.connection_json,
                "AIRFLOW_CONN_AWS_DEFAULT": server.connection_json,
            },
            s3=s3,
            books=lambda: books(emulator),
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
        bucket=bucket,
        connections={
            "AIRFLOW_CONN_GPTIMG_DEFAULT": json.dumps({"conn_type": "gptimg", "password": api_key}),
            "AIRFLOW_CONN_AWS_DEFAULT": json.dumps({"conn_type": "aws"}),
        },
        s3=boto3.client("s3"),
    )
