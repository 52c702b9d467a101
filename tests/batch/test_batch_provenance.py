# SPDX-License-Identifier: Apache-2.0
"""The provenance of a batch's images: fields of the manifest, and `require_c2pa`."""

from __future__ import annotations

from hashlib import sha256

import pytest
from batch_instance import batch

from airflow_provider_gptimg import __version__
from airflow_provider_gptimg.exceptions import GptImgMediaError, GptImgTaskFailedError


def test_the_manifest_names_the_origin(emulator, manifest, instance):
    prompts = ["A lighthouse", "A pier"]
    instance.run(batch(prompts, manifest_key="manifest.jsonl"))
    for row, prompt in zip(manifest("manifest.jsonl"), prompts, strict=True):
        origin = {"airflow_task_id": "batch", "dag_id": instance.dag_id, "run_id": instance.run_id, "map_index": -1}
        assert origin.items() <= row.items()
        assert row["generator"] == f"airflow-provider-gptimg {__version__}"
        assert row["model"] == "gpt-image-2"
        assert row["created_at"] <= row["updated_at"]
        assert row["prompt_sha256"] == sha256(prompt.encode()).hexdigest()
        assert row["c2pa"] is False


def test_a_batch_whose_images_have_none_buys_no_more(emulator, stored, instance):
    with pytest.raises(GptImgMediaError, match="has no C2PA manifest"):
        instance.run(batch([f"A lighthouse {number}" for number in range(6)], max_in_flight=2, require_c2pa=True))
    assert len(emulator.tasks) == 2
    assert stored() == {}


def test_a_batch_looks_again_at_what_it_mirrored_before_it_was_asked(emulator, s3, instance):
    """The first attempt mirrors one image and fails for another; the second one asks for manifests."""
    emulator.fault("submit", "fail")
    with pytest.raises(GptImgTaskFailedError, match="Of 2 requests 1 are mirrored"):
        instance.run(batch(["A lighthouse", "A pier"]))
    with pytest.raises(GptImgMediaError, match="Of 2 requests 0 are mirrored"):
        instance.retry().run(batch(["A lighthouse", "A pier"], require_c2pa=True))
