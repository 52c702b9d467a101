# SPDX-License-Identifier: Apache-2.0
"""A DAG whose transfer has all kinds of outlets. As a script it runs, and writes what Airflow made of it as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from airflow_names import DAG

from airflow_provider_gptimg.airflow_compat import Asset, AssetAlias, get_hook_lineage_collector
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

with DAG("mirroring_lineage", schedule=None) as dag:
    GptImgToS3Operator(
        task_id="mirror",
        gptimg_task_id=os.environ["IMAGE_TASKS"].split(),
        s3_bucket="images",
        s3_key="campaigns/{{ 'summer time' }}/{task_id}-{index}{ext}",
        outlets=[
            Asset(name="posters", uri="s3://images/posters"),
            Asset.ref(name="thumbnails"),
            AssetAlias("summer"),
        ],
    )

with DAG("mirroring_thumbnails", schedule=[Asset("thumbnails")]):
    pass


def main(result: Path) -> None:
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    run = dag.test()
    lineage = get_hook_lineage_collector().collected_assets
    with create_session() as session:
        rows = session.scalars(select(AssetEvent).where(AssetEvent.source_run_id == run.run_id)).unique()
        events = {
            row.asset.name: {"aliases": [alias.name for alias in row.source_aliases], "extra": row.extra}
            for row in rows
        }
    result.write_text(
        json.dumps(
            {
                "objects": run.get_task_instance("mirror").xcom_pull("mirror"),
                "events": events,
                "inputs": [entry.asset.uri for entry in lineage.inputs],
                "outputs": [entry.asset.uri for entry in lineage.outputs],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
