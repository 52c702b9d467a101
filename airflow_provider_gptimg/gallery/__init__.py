# SPDX-License-Identifier: Apache-2.0
"""The gallery: the pictures of a DAG run among Airflow's own pages, for those whom Airflow lets see them.

`runs` loads what a run recorded, `tiles` makes tiles of it, `pictures` opens the images, and `spent` sums up credits.
`app` serves them behind Airflow's own permission checks, with a static page that shows them. `plugin` adds it to
Airflow's UI.
"""
