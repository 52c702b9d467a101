# SPDX-License-Identifier: Apache-2.0
"""Links on task instances: to the first image, and to the objects in S3.

Airflow 3 writes an XCom for each link of an operator at the end of each leg of a task, empty or not. So on a worker an
operator has only the links whose URLs it knows, and none while it waits; the gallery is a tab of each task instance
there. Airflow 2.11 asks for a link when someone looks. No link holds a signature or a key, and none can fail a task.
"""

from __future__ import annotations

import ipaddress
import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote, urlsplit

from airflow_provider_gptimg.airflow_compat import (
    AIRFLOW,
    BaseOperatorLink,
    XCom,
    conf,
)

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    from airflow_provider_gptimg.airflow_compat import BaseOperator, TaskInstanceKey
    from airflow_provider_gptimg.mirroring.mirror import MirroredObject

__all__ = [
    "GALLERY_ROUTE",
    "FirstImageLink",
    "ImagesLink",
    "S3ObjectsLink",
    "known_links",
    "link_xcoms",
    "objects_url",
    "task_links",
]

GALLERY_ROUTE = "gptimg-images"
"""Route of the gallery's tab on a task instance."""

log: logging.Logger = logging.getLogger(__name__)

_PRIVATE_NAMES = (".localhost", ".local", ".internal", ".svc", ".vpce.amazonaws.com")
"""Names in a machine's own network, in a Kubernetes cluster (`….svc`, `….svc.cluster.local`) and in a VPC."""


_OTHER_CONSOLES = ("cn-", "us-gov-", "us-iso", "eusc-")
"""Starts of AWS regions that this console does not show: their partitions have consoles and accounts of their own."""


class _Link(BaseOperatorLink):
    """A link that is left out rather than fail.

    :param url: What it leads to, where that is known already; None: it is looked up.
    """

    name: ClassVar[str]

    def __init__(self, url: str | None = None) -> None:
        self.url = url

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the URL; empty if it is not known, or not yet."""
        if self.url is not None:
            return self.url
        try:
            return self._url(operator, ti_key)
        except Exception as error:
            # Its text may hold a secret; its type is enough.
            log.debug("No link %r for %s: %s", self.name, ti_key, type(error).__name__)
            return ""

    @abstractmethod
    def _url(self, operator: Any, ti_key: Any) -> str:
        """Look the URL up; empty if it is not known."""


class ImagesLink(_Link):
    """Opens the gallery for a task instance, or its XComs where Airflow has no gallery."""

    name = "Images"

    def _url(self, operator: Any, ti_key: Any) -> str:
        return images_url(ti_key.dag_id, ti_key.run_id, ti_key.task_id, ti_key.map_index)


class FirstImageLink(_Link):
    """Opens the first image where the vendor hosts it, once the task has it."""

    name = "First image"

    def _url(self, operator: Any, ti_key: Any) -> str:
        return first_image_url(XCom.get_value(ti_key=ti_key, key="return_value"))


class S3ObjectsLink(_Link):
    """Opens the mirrored objects in the S3 console, or at the store's endpoint; the folder while they are to come."""

    name = "S3"

    def _url(self, operator: Any, ti_key: Any) -> str:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        objects = XCom.get_value(ti_key=ti_key, key="return_value")
        if isinstance(objects, list) and objects:
            bucket, key = objects[0]["bucket"], objects[0]["key"]
        else:
            from airflow_provider_gptimg.mirroring.destination import KeyPattern

            pattern = KeyPattern(operator.s3_key, operator.s3_bucket)
            bucket, key = pattern.bucket, ""
            if pattern.folder:
                key = f"{pattern.folder}/"
        return _s3_url_for(S3Hook(aws_conn_id=operator.aws_conn_id, verify=operator.verify), bucket, key)


def task_links(*links: _Link) -> tuple[_Link, ...]:
    """Return the links that an operator's class has."""
    # From 3.0 on each link is an XCom, and a tab of the task instance leads to the same page.
    return links if AIRFLOW >= (3, 0) else (ImagesLink(), *links)


def known_links(link: type[_Link], url: str) -> tuple[_Link, ...]:
    """Return the links of an operator that has ended on a worker: none if `url` is empty."""
    return (link(url),) if url else ()


def objects_url(hook: S3Hook, objects: Sequence[MirroredObject]) -> str:
    """Return the URL of the first of these objects in a browser; empty without objects."""
    return _s3_url_for(hook, objects[0].bucket, objects[0].key) if objects else ""


def _s3_url_for(hook: S3Hook, bucket: str, key: str) -> str:
    config = hook.conn_config
    return s3_url(bucket, key, config.region_name, config.get_service_endpoint_url("s3"))


def images_url(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return where this Airflow shows a task instance's images.

    :param map_index: -1 for a task that is not mapped.
    """
    dag, run, task = (quote(part, safe="") for part in (dag_id, run_id, task_id))
    if AIRFLOW < (3, 0):
        base = conf.get("webserver", "base_url", fallback="").rstrip("/")
        mapped = f"&map_index={map_index}" if map_index >= 0 else ""
        return f"{base}/dags/{dag}/grid?dag_run_id={run}&task_id={task}{mapped}&tab=xcom"
    base = conf.get("api", "base_url", fallback="").rstrip("/")
    mapped = f"/mapped/{map_index}" if map_index >= 0 else ""
    page = f"plugin/{GALLERY_ROUTE}" if AIRFLOW >= (3, 1) else "xcom"
    return f"{base}/dags/{dag}/runs/{run}/tasks/{task}{mapped}/{page}"


def first_image_url(result: Any) -> str:
    """Return the first hosted URL in a task's result; empty if it has none that may be shown."""
    return next(filter(_may_be_shown, _hosted_urls(result)), "")


def s3_url(bucket: str, key: str, region: str | None, endpoint: str | None) -> str:
    """Return where a person finds an object or, for a key that ends in a slash or is empty, a folder.

    The result is empty for an endpoint that a browser is unlikely to reach, and for a region with another console.

    :param endpoint: Of a store that is not AWS; None: AWS, shown in its console.
    """
    if endpoint:
        parts = urlsplit(endpoint)
        if _is_private(parts.hostname or ""):
            return ""
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path.rstrip('/')}/{quote(bucket)}/{quote(key)}"
    if region and region.startswith(_OTHER_CONSOLES):
        return ""
    page = "buckets" if not key or key.endswith("/") else "object"
    where = f"region={quote(region)}&" if region else ""
    return f"https://console.aws.amazon.com/s3/{page}/{quote(bucket)}?{where}prefix={quote(key, safe='')}"


def _is_private(host: str) -> bool:
    """Return whether only machines near Airflow's are likely to reach a host; no name server is asked."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_NAMES)


def link_xcoms(result: Any) -> Iterator[tuple[str, str]]:
    """Yield XCom key and URL of each link for a task that ends in the triggerer, where Airflow asks for none.

    :param result: What it returns.
    """
    if url := first_image_url(result):
        yield FirstImageLink().xcom_key, url


def _hosted_urls(result: Any) -> Iterator[Any]:
    for entry in result if isinstance(result, list) else [result]:
        if isinstance(entry, Mapping):
            for image in entry.get("images") or ():
                yield image.get("url") if isinstance(image, Mapping) else None


def _may_be_shown(url: Any) -> bool:
    """Return whether a URL is one to open in a browser: a query may be a signature, user-info a password."""
    if not isinstance(url, str):
        return False
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("https", "http") and bool(parts.netloc) and "@" not in parts.netloc and not parts.query
