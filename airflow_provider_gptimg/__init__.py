# SPDX-License-Identifier: Apache-2.0
"""Apache Airflow provider for the gpt-image-2 API: submit once, wait without a worker, own the images in S3."""

from __future__ import annotations

from typing import Any

__all__ = ["__version__", "get_provider_info"]

__version__ = "1.0.0"


def get_provider_info() -> dict[str, Any]:
    """Return the metadata by which Airflow finds what is in this package."""
    integration = "gpt-image-2"
    return {
        "package-name": "airflow-provider-gptimg",
        "name": "gpt-image-2",
        "description": "Generate images with the gpt-image-2 API, wait for them without a worker, mirror them to S3.",
        "versions": [__version__, "0.1.0"],
        "integrations": [
            {
                "integration-name": integration,
                "external-doc-url": "https://gptimg.co",
                "tags": ["service"],
            }
        ],
        "hooks": [{"integration-name": integration, "python-modules": ["airflow_provider_gptimg.hooks.gptimg"]}],
        "operators": [
            {
                "integration-name": integration,
                "python-modules": [
                    "airflow_provider_gptimg.operators.gptimg",
                    "airflow_provider_gptimg.operators.gptimg_batch",
                ],
            }
        ],
        "sensors": [{"integration-name": integration, "python-modules": ["airflow_provider_gptimg.sensors.gptimg"]}],
        "triggers": [{"integration-name": integration, "python-modules": ["airflow_provider_gptimg.triggers.gptimg"]}],
        "transfers": [
            {
                "source-integration-name": integration,
                "target-integration-name": "Amazon Simple Storage Service (S3)",
                "python-module": "airflow_provider_gptimg.transfers.gptimg_to_s3",
            }
        ],
        "extra-links": [
            "airflow_provider_gptimg.links.gptimg.ImagesLink",
            "airflow_provider_gptimg.links.gptimg.FirstImageLink",
            "airflow_provider_gptimg.links.gptimg.S3ObjectsLink",
        ],
        "config": {
            "gptimg": {
                "description": "Settings of airflow-provider-gptimg.",
                "options": {
                    "journal": {
                        "description": (
                            "Where tasks keep what they have submitted, so that no retry pays twice: "
                            "``s3://bucket/prefix``, one small object an entry; ``auto``, the task state store on "
                            "Airflow 3.3 and Airflow Variables on all others; ``none``, nowhere."
                        ),
                        "version_added": "0.2.0",
                        "type": "string",
                        "example": "s3://my-bucket/gptimg-journal",
                        "default": "auto",
                    },
                    "journal_aws_conn_id": {
                        "description": "AWS connection for ``journal = s3://…``.",
                        "version_added": "0.2.0",
                        "type": "string",
                        "example": None,
                        "default": "aws_default",
                    },
                },
            }
        },
        "task-decorators": [
            {"name": "gptimg", "class-name": "airflow_provider_gptimg.decorators.gptimg.gptimg_task"},
            {"name": "gptimg_batch", "class-name": "airflow_provider_gptimg.decorators.gptimg_batch.gptimg_batch_task"},
        ],
        "connection-types": [
            {
                "connection-type": "gptimg",
                "hook-class-name": "airflow_provider_gptimg.hooks.gptimg.GptImgHook",
                "hook-name": "gpt-image-2 (gptimg)",
                "ui-field-behaviour": {
                    "hidden-fields": ["login"],
                    "relabeling": {"password": "API key", "host": "Base URL"},
                    "placeholders": {
                        "host": "https://gptimg.co",
                        "password": "sent in the Authorization header to the base URL's host only",
                    },
                },
                "conn-fields": {
                    "timeout": {
                        "label": "Timeout of a call (s)",
                        "description": "Seconds for one HTTP call; 30 if empty.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    },
                    "poll_interval": {
                        "label": "Poll interval (s)",
                        "description": "Seconds between polls of an image task; 5 if empty; the vendor asks for 5–10.",
                        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
                    },
                    "first_poll_after": {
                        "label": "First poll after (s)",
                        "description": "Seconds from submission to the first poll; 39.5 if empty.",
                        "schema": {"type": ["number", "null"], "minimum": 0},
                    },
                    "on_unknown_submission": {
                        "label": "On unknown submission",
                        "description": (
                            "What a repeated task does if its earlier submit may have been charged: 'fail' (if empty) "
                            "lets a person decide, 'resubmit' submits again and may pay twice."
                        ),
                        "schema": {"type": ["string", "null"], "examples": ["fail", "resubmit"]},
                    },
                    "final_failure_codes": {
                        "label": "Final failure codes",
                        "description": (
                            "Patterns of error codes, separated by commas, by which a failed generation is final: "
                            "another attempt would be refused again. Content policy, moderation and safety if empty."
                        ),
                        "schema": {"type": ["string", "null"], "examples": ["*content_policy*, *moderation*"]},
                    },
                    "media_hosts": {
                        "label": "Media hosts",
                        "description": (
                            "Hosts that image URLs may come from over HTTPS, separated by commas; "
                            "'gptimg.co, *.gptimg.co' if empty."
                        ),
                        "schema": {"type": ["string", "null"]},
                    },
                    "reference_images_field": {
                        "label": "Reference images field",
                        "description": "Name of the reference-image field on the wire; 'image_urls' if empty.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "verify": {
                        "label": "Verify TLS",
                        "description": "'true' (if empty), 'false', or the path of a CA bundle.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "max_connections": {
                        "label": "Connections of a triggerer",
                        "description": "Sockets that a triggerer opens to the API at the most; 128 if empty.",
                        "schema": {"type": ["integer", "null"], "minimum": 1, "maximum": 9999},
                    },
                },
            }
        ],
    }
