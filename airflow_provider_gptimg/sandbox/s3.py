# SPDX-License-Identifier: Apache-2.0
"""An S3 in memory: moto's server on a loopback port."""

from __future__ import annotations

import json
import logging
from types import TracebackType
from typing import Any

__all__ = ["S3Server"]

_REGION = "us-east-1"
_CREDENTIALS = {"aws_access_key_id": "sandbox", "aws_secret_access_key": "sandbox"}


class S3Server:
    """S3 on a free port of 127.0.0.1, used in a `with` block. All that run in one process share their objects.

    :param buckets: Made at the start.
    """

    def __init__(self, *buckets: str) -> None:
        self._buckets = buckets
        self._server: Any = None

    def __enter__(self) -> S3Server:
        from moto.server import ThreadedMotoServer

        # Else it prints a line for each request.
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        client = self.client()
        for bucket in self._buckets:
            client.create_bucket(Bucket=bucket)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()

    @property
    def endpoint_url(self) -> str:
        """URL of the server."""
        host, port = self._server.get_host_and_port()
        return f"http://{host}:{port}"

    @property
    def connection_json(self) -> str:
        """The Airflow connection to it, as JSON; a value for `AIRFLOW_CONN_AWS_DEFAULT`."""
        return json.dumps(
            {
                "conn_type": "aws",
                "login": _CREDENTIALS["aws_access_key_id"],
                "password": _CREDENTIALS["aws_secret_access_key"],
                "extra": {"region_name": _REGION, "endpoint_url": self.endpoint_url},
            }
        )

    def client(self) -> Any:
        """Return a boto3 client for it."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=_REGION,
            config=Config(proxies={}),
            **_CREDENTIALS,
        )
