# SPDX-License-Identifier: Apache-2.0
"""The wheel and the source distribution: what they hold, and how a package index shows them."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from airflow_provider_gptimg import __version__

ROOT = Path(__file__).parent.parent
NAME = "airflow-provider-gptimg"
PACKAGE = "airflow_provider_gptimg"


def build(target: str, source: Path, folder: Path) -> Path:
    """Build without a network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    # Else the build's own hook leaves its bytecode among the sources.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, check=True, capture_output=True, cwd=source, env=environment)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """The unpacked source distribution."""
    built = build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))
    with tarfile.open(built) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
        archive.extractall(unpacked := tmp_path_factory.mktemp("sources"))
    (folder,) = unpacked.iterdir()
    return folder


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from the source distribution, as installers do."""
    return zipfile.ZipFile(build("wheel", sources, tmp_path_factory.mktemp("dist")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


class TestWheel:
    def test_holds_all_of_the_package_and_nothing_beside_it(self, wheel):
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        ours = {
            str(path.relative_to(ROOT))
            for path in (ROOT / PACKAGE).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        examples = {f"{PACKAGE}/example_dags/{path.name}" for path in (ROOT / "example_dags").glob("*.py")}
        assert names == ours | examples
        assert {f"{PACKAGE}/py.typed", f"{PACKAGE}/gallery/static/index.html"} <= names
        assert len(examples) >= 6
        assert not [name for name in names if "test" in name or name.endswith((".pem", ".env"))]

    def test_holds_the_licence(self, wheel):
        (licence,) = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
        assert b"Apache License" in wheel.read(licence)

    def test_has_the_entry_points(self, wheel):
        (points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
        assert b"provider_info = airflow_provider_gptimg:get_provider_info" in wheel.read(points)
        assert b"[pytest11]\ngptimg = airflow_provider_gptimg.fixtures\n" in wheel.read(points)

    def test_says_what_it_is(self, metadata):
        assert (metadata["Name"], metadata["Version"]) == (NAME, __version__)
        assert metadata["License-Expression"] == "Apache-2.0"
        assert metadata["Requires-Python"] == ">=3.11"
        assert {
            "Development Status :: 5 - Production/Stable",
            "Framework :: Apache Airflow :: Provider",
            "Typing :: Typed",
        } <= set(metadata.get_all("Classifier"))

    def test_its_long_description_is_the_readme_without_links_to_files_beside_it(self, metadata):
        shown, readme = metadata.get_payload(), (ROOT / "README.md").read_text()
        assert metadata["Description-Content-Type"] == "text/markdown"
        for target in re.findall(r"\]\(([^)]*)\)", shown):
            assert target.startswith("https://")
        assert "![" not in shown
        assert "[`GptImgSubmitOperator`](" in readme
        assert "| `GptImgSubmitOperator` |" in shown
        assert re.findall(r"^#+ .*$", shown, re.MULTILINE) == re.findall(r"^#+ .*$", readme, re.MULTILINE)
        assert shown.count("```") == readme.count("```")


class TestSources:
    def test_hold_what_a_packager_needs_to_build_and_test(self, sources):
        for name in ("README.md", "LICENSE", "CHANGELOG.md", "Makefile", "pyproject.toml", "requirements.lock"):
            assert (sources / name).is_file()
        for folder in (PACKAGE, "example_dags", "tests", "docs"):
            assert (sources / folder).is_dir()

    def test_hold_nothing_that_was_made_here(self, sources):
        made = (".venv", "__pycache__", "build", "dist", "site", "gptimg-out", "airflow.cfg")
        assert not [path for path in sources.rglob("*") if path.name in made or path.suffix in (".pyc", ".log", ".db")]
