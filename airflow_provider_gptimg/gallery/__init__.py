# SPDX-License-Identifier: Apache-2.0
"""The gallery: the pictures of a DAG run among Airflow's own pages, for those whom Airflow lets see them.

`tiles` says what there is to see, from what a run left in Airflow's database; `pictures` brings the bytes; `app`
serves both behind Airflow's own permission checks, and a static page that shows them; `plugin` puts it into Airflow.
"""
