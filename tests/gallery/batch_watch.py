# SPDX-License-Identifier: Apache-2.0
"""A batch of three requests, looked at while it runs, whichever store its journal is in."""

from __future__ import annotations

from typing import Any

from airflow_provider_gptimg.sandbox.rest import until


def watch_batch(gallery: Any) -> Any:
    """Return its run, in which one of three requests was refused."""
    prompts = ["Batch, done", "Batch, refused", "Batch, awaited"]
    run = gallery.start("gallery_batch", prompts=prompts)
    done, refused = (gallery.submitted(prompt) for prompt in prompts[:2])
    gallery.emulator.finish(done)
    gallery.emulator.finish(refused, "failed", "The prompt was refused")
    awaited = gallery.submitted(prompts[2])  # two are in flight at a time
    prompt_of = dict(zip((done, refused, awaited), prompts, strict=True))

    def states() -> dict[str, str]:
        return {tile["image_task"]: tile["state"] for tile in gallery.tiles(run)}

    # The answer to the last submission is recorded a moment after the API has given it.
    under_way = until(
        lambda: seen if (seen := states()).get(done) == "ready" and awaited in seen else None, 120, "the first picture"
    )
    assert under_way[awaited] == "pending"
    tiles = {tile["image_task"]: tile for tile in gallery.tiles(run)}
    assert gallery.picture(run, tiles[done]).content.startswith(b"\x89PNG")

    gallery.emulator.finish(awaited)
    run.wait()
    assert states() == {done: "ready", refused: "failed", awaited: "ready"}
    assert {tile["image_task"]: tile["prompt"] for tile in gallery.tiles(run)} == prompt_of
    reasons = [tile["failure"]["reason"] for tile in gallery.tiles(run) if tile["state"] == "failed"]
    assert "The prompt was refused" in reasons[0]
    assert gallery.told(run)["credits"] == {"charged": 6, "refunded": 2, "unknown": 0}
    return run
