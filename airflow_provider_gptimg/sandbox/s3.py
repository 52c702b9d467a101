# SPDX-License-Identifier: Apache-2.0
"""An S3 in memory: moto's server on a loopback port."""

from __future__ import annotations

import http.client
import json
import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any

__all__ = ["ACCESS_KEY", "S3Server"]

ACCESS_KEY = "sandbox"
"""The access key, and its secret."""
_REGION = "us-east-1"
_CREDENTIALS = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": ACCESS_KEY}


class S3Server:
    """S3 on a free port of 127.0.0.1, used in a `with` block. All that run in one process share their objects.

    :param buckets: Created at the start.
    :param creates_buckets: Create any other bucket when it is first written to or listed. Reading an object creates
        none, so that a misspelt bucket is noticed.
    """

    def __init__(self, *buckets: str, creates_buckets: bool = False) -> None:
        self._buckets = buckets
        self._creates_buckets = creates_buckets
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> S3Server:
        from moto import server as moto
        from werkzeug.serving import make_server

        # Else it prints a line for each request.
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        application: Any = moto.DomainDispatcherApplication(moto.create_backend_app)
        if self._creates_buckets:
            application = _BucketsOnFirstUse(application, self._create_bucket)
        handler = getattr(moto, "MotoRequestHandler", None)  # moto 5.2 and newer
        self._server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="gptimg-s3", daemon=True)
        self._thread.start()
        for bucket in self._buckets:
            self._create_bucket(bucket)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        if self._thread is not None:
            self._thread.join()

    @property
    def endpoint_url(self) -> str:
        """URL of the server."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def connection_json(self) -> str:
        """The Airflow connection to it, as JSON; a value for `AIRFLOW_CONN_AWS_DEFAULT`."""
        extra = {
            "region_name": _REGION,
            "endpoint_url": self.endpoint_url,
            # For "Test connection", which asks STS who it is.
            "service_config": {"sts": {"endpoint_url": self.endpoint_url}},
        }
        return json.dumps({"conn_type": "aws", "login": ACCESS_KEY, "password": ACCESS_KEY, "extra": extra})

    def reset(self) -> None:
        """Delete all objects and buckets."""
        connection = http.client.HTTPConnection("127.0.0.1", self._server.server_port)
        connection.request("POST", "/moto-api/reset")
        connection.getresponse().read()
        connection.close()

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

    def _create_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)


class _BucketsOnFirstUse:
    """A WSGI application that creates the bucket of a request before it passes the request on.

    :param create: Creates a bucket, by a request that comes through here too.
    """

    def __init__(self, application: Any, create: Callable[[str], None]) -> None:
        self._application = application
        self._create = create
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        bucket, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
        method = environ["REQUEST_METHOD"]
        # A mirror lists a bucket before it writes. PUT without a key creates the bucket itself.
        uses = method not in ("GET", "HEAD") if key else method != "PUT"
        if bucket == "moto-api":
            self._seen.clear()  # it may be a reset
        elif bucket and uses:
            with self._lock:
                if bucket not in self._seen:
                    with suppress(Exception):  # not a name of a bucket, for example: the request itself is answered
                        self._create(bucket)
                    self._seen.add(bucket)
        answer: Iterable[bytes] = self._application(environ, start_response)
        return answer
