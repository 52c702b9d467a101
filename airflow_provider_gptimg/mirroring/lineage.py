# SPDX-License-Identifier: Apache-2.0
"""Asset events, hook lineage and OpenLineage datasets for mirrored images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow_provider_gptimg.airflow_compat import Asset, AssetAlias, get_hook_lineage_collector
from airflow_provider_gptimg.api.texts import clean_url

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_gptimg.mirroring.destination import KeyPattern
    from airflow_provider_gptimg.mirroring.mirror import MirroredObject

__all__ = ["describe_outlets", "openlineage_datasets", "report_to_collector"]

_MOST_URIS_BESIDE_MANIFEST = 100
_LONGEST_URI = 1500
"""Most characters of an asset's URI that Airflow's database accepts."""


def describe_outlets(
    outlet_events: Any,
    outlets: Iterable[Any],
    pattern: KeyPattern,
    objects: Sequence[MirroredObject],
    manifest: str | None,
) -> None:
    """Put the objects' URIs, and the manifest's, into the `extra` of each outlet's asset event.

    With a manifest and more than 100 objects, the event leaves the URIs to the manifest: it is a row in Airflow's
    database.

    An alias resolves to the folder of the key pattern, rather than to each image: so each run adds an event, not
    assets.

    :param outlet_events: The task context's `outlet_events`; None outside a running task.
    """
    if outlet_events is None:
        return
    extra: dict[str, Any] = {"images": len(objects)}
    if manifest:
        extra["manifest"] = manifest
    if not manifest or len(objects) <= _MOST_URIS_BESIDE_MANIFEST:
        extra["uris"] = [mirrored.uri for mirrored in objects]
    for outlet in outlets:
        try:
            event = outlet_events[outlet]
        except TypeError:  # some other kind of outlet, which has no events
            continue
        if isinstance(outlet, AssetAlias):
            event.add(Asset(_folder_uri(pattern)), extra=extra)
        else:
            event.extra.update(extra)


def _folder_uri(pattern: KeyPattern) -> str:
    """Return the URI of the pattern's folder, or of the nearest folder above it that is short enough."""
    folder = pattern.folder
    while len(uri := f"s3://{pattern.bucket}/{quote(folder)}") > _LONGEST_URI:
        folder = folder.rpartition("/")[0]
    return uri


def report_to_collector(hook: Any, objects: Iterable[MirroredObject]) -> None:
    """Report each image's URL as an input and its object as an output to Airflow's hook lineage collector.

    :param hook: The S3 hook of the transfer.
    """
    collector = get_hook_lineage_collector()
    for mirrored in objects:
        collector.add_input_asset(context=hook, uri=clean_url(mirrored.source_url))
        key = _UNSAFE.sub(lambda found: quote(found[0]), mirrored.key)
        if len(f"s3://{mirrored.bucket}/{key}") <= _LONGEST_URI:
            collector.add_output_asset(context=hook, scheme="s3", asset_kwargs={"bucket": mirrored.bucket, "key": key})


# Airflow takes ASCII only, and cuts a URI at its query and its fragment.
_UNSAFE = re.compile(r"[?#%]|[^\x00-\x7f]+")


def openlineage_datasets(pattern: KeyPattern | None, objects: Sequence[MirroredObject]) -> OperatorLineage:
    """Return the folders that images were read from and written to, with statistics of what was written.

    Folders stay the same from run to run and so make a graph; images would be new nodes every time.
    """
    from airflow.providers.common.compat.openlineage.facet import (
        InputDataset,
        OutputDataset,
        OutputStatisticsOutputDatasetFacet,
    )
    from airflow.providers.openlineage.extractors import OperatorLineage

    if pattern is None or not objects:
        return OperatorLineage()
    new = [mirrored for mirrored in objects if not mirrored.skipped]
    written = OutputStatisticsOutputDatasetFacet(size=sum(mirrored.size for mirrored in new), fileCount=len(new))
    return OperatorLineage(
        inputs=[
            InputDataset(namespace=namespace, name=name)
            for namespace, name in sorted({_source_folder(mirrored.source_url) for mirrored in objects})
        ],
        outputs=[
            OutputDataset(
                namespace=f"s3://{pattern.bucket}",
                name=pattern.folder or "/",
                outputFacets={"outputStatistics": written},
            )
        ],
    )


def _source_folder(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}", parts.path.rpartition("/")[0].strip("/") or "/"
