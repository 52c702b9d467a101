# SPDX-License-Identifier: Apache-2.0
"""Sphinx's settings for `make docs`. Neither the build nor the pages need a network."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

# The classes are imported for their reference, and Airflow writes into its home when it is.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-home-")
atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)

from airflow_provider_gptimg import __version__ as release  # noqa: E402

project = "airflow-provider-gptimg"
version = release
copyright = "the maintainers, Apache License 2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_heading_anchors = 3

copybutton_prompt_text = "$ "  # of a console block only the commands are copied

default_role = "code"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 90
# What is documented elsewhere; with no network, there is no inventory to look it up in.
nitpick_ignore_regex = [
    (r"py:.*", r"(airflow|collections|httpx)\..*|datetime|(datetime\.)?timedelta|airflow_provider_gptimg\.waiting\..*"),
    (r"py:exc", r"GptImg\w+Error"),  # named in full on the page of errors
]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"airflow-provider-gptimg {release}"
html_copy_source = False
html_show_sourcelink = False
