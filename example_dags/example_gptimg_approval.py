# SPDX-License-Identifier: Apache-2.0
"""Three variants of a poster; a person picks those to keep (Airflow 3.1 and newer).

The form under *Required Actions* shows the variants. Those that are picked go to S3; the others stay at the vendor's.
*Make others* starts the DAG again. Each round costs 2 credits a variant, also for variants that nobody picks. A person
starts each round with a click, so the DAG never spends credits by itself.
"""

from __future__ import annotations

# [START howto_dag_gptimg_approval]
from collections.abc import Iterable
from urllib.parse import quote

from airflow.exceptions import AirflowOptionalProviderFeatureException
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Param, dag, task

from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

try:
    from airflow.providers.standard.operators.hitl import HITLBranchOperator
except AirflowOptionalProviderFeatureException:  # Airflow 3.0 cannot ask a person.
    HITLBranchOperator = None

STYLES = ["linocut", "watercolour", "gouache"]
MAKE_OTHERS = "Make others"


def table_row(cells: Iterable[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |\n"


def picture(style: str) -> str:
    """Return Markdown that shows a variant's first image, as a Jinja template."""
    return f"![{style}]({{{{ ti.xcom_pull(task_ids='{style}').images[0].url | shown }}}})"


def shown(url: str) -> str:
    """Quote an image's URL for Markdown; refuse hosts that images may not come from."""
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook

    return quote(GptImgHook().settings.check_media_url(url), safe=":/?&=%+")


@dag(
    schedule=None,
    user_defined_filters={"shown": shown},
    default_args={"retries": 2},  # A retry takes up what is paid for already.
    params={
        "subject": Param("A ferry in the fog", type="string"),
        "bucket": Param("gptimg-demo", type="string"),
    },
    tags=["example", "gptimg"],
    doc_md=__doc__,
)
def example_gptimg_approval():
    @task.gptimg(deferrable=True, max_credits=2)
    def poster(style: str, params: dict) -> dict:
        return {"prompt": f"{params['subject']}, {style} poster", "aspect_ratio": "3:4"}

    choose = HITLBranchOperator(
        task_id="choose",
        subject="{{ params.subject }}: which posters do we keep?",
        body=table_row(STYLES) + table_row("---" for _ in STYLES) + table_row(map(picture, STYLES)),
        options=[*STYLES, MAKE_OTHERS],
        options_mapping={style: f"mirror_{style}" for style in STYLES} | {MAKE_OTHERS: "make_others"},
        multiple=True,
    )
    for style in STYLES:
        variant = poster.override(task_id=style)(style)
        mirror = GptImgToS3Operator(
            task_id=f"mirror_{style}",
            gptimg_task_id=variant,
            s3_key="s3://{{ params.bucket }}/posters/{task_id}" + f"-{style}" + "{ext}",
        )
        variant >> choose >> mirror

    choose >> TriggerDagRunOperator(
        task_id="make_others",
        trigger_dag_id="example_gptimg_approval",
        conf={"subject": "{{ params.subject }}", "bucket": "{{ params.bucket }}"},
    )


if HITLBranchOperator:
    example_gptimg_approval()
# [END howto_dag_gptimg_approval]
