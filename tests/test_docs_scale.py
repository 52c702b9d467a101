# SPDX-License-Identifier: Apache-2.0
"""The page on scale shows what the model computes, and the simulation behaves as queues do."""

from __future__ import annotations

import pytest
from markdown_pages import PAGES

from benchmarks.scale import COSTS, needs, page_tables
from benchmarks.simulation import simulate

COST = {"calls": 10.0, "S3 requests": 3.0, "database bytes": 2**20, "CPU of worker": 1.2}
COST |= dict.fromkeys(("CPU of api-server", "CPU of scheduler", "CPU of triggerer", "CPU of postgres"), 0.3)


@pytest.mark.skipif(not COSTS.exists(), reason="no costs were measured")
def test_the_page_shows_what_is_computed():
    shown = PAGES["docs/scale.md"].split("<!-- tables -->\n")[1].split("\n<!-- end of tables -->")[0]
    assert shown.strip() == page_tables()


def test_needs_grow_with_the_images():
    few, many = needs(COST, 28_800), needs(COST, 288_000)
    assert few["images a second, in the busy hours"] == "1.00"
    assert (few["image tasks waiting at a time"], many["image tasks waiting at a time"]) == ("55", "550")
    assert (few["triggerers"], many["triggerers"]) == ("2", "5")
    assert (few["cores of workers"], many["cores of workers"]) == ("2.0", "20")
    assert (few["growth of the database, MiB a day"], few["credits a day"]) == ("28,800", "57,600")


@pytest.mark.parametrize("dag_id", ["chains", "sensors", "batch"])
def test_an_image_alone_takes_its_cpu_and_its_wait(dag_id):
    seconds = simulate({dag_id: {"CPU of worker": 3.0}}, {dag_id: 1}, cores=2)
    assert 3 + 16 <= seconds <= 3 + 20


def test_many_images_take_the_cores_they_need():
    seconds = simulate({"chains": {"CPU of worker": 3.0}}, {"chains": 200}, cores=2)
    assert 200 * 3 / 2 <= seconds <= 200 * 3 / 2 + 40


def test_a_batch_is_bounded_by_what_may_be_in_flight():
    seconds = simulate({"batch": {"CPU of worker": 0.01}}, {"batch": 300}, cores=2)
    assert 5 * 15 <= seconds <= 5 * 21 + 5
