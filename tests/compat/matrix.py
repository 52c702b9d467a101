# SPDX-License-Identifier: Apache-2.0
"""Run the tests on every supported Airflow, each with the oldest and the newest Amazon provider.

python tests/compat/matrix.py run [NAME …]    e.g. 3.0-lowest; all without a name; --short: what a gate has time for
python tests/compat/matrix.py gallery [NAME]  the gallery's tests, browser included; 3.1-newest without a name
python tests/compat/matrix.py lock [NAME …]   resolve tests/compat/airflow-NAME.lock again
python tests/compat/matrix.py report          write docs/matrix.md from the last runs that were not short
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from time import monotonic
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
REPORT = ROOT / "docs/matrix.md"
UV = [sys.executable, "-m", "uv", "--quiet"]

# With what their own constraints pin, where the newest release breaks this Airflow's API server.
AIRFLOWS = {
    "2.11": ["apache-airflow>=2.11,<2.12"],
    "3.0": ["apache-airflow>=3.0,<3.1", "fastapi==0.116.1", "cadwyn==5.4.4"],
    "3.1": ["apache-airflow>=3.1,<3.2"],
    "3.2": ["apache-airflow>=3.2,<3.3", "fastapi<0.137", "cadwyn<8", "svcs<26"],
    "3.3": ["apache-airflow>=3.3,<3.4"],
    "3.4": ["apache-airflow>=3.4.0b1,<3.5"],
}
# The lowest versions run on the oldest Python, the newest on the newest that this Airflow takes.
OLDEST_PYTHON = "3.11"
PYTHONS = {"2.11": ["3.12"], "3.0": ["3.12"], "3.1": ["3.13"]}
NEWER_PYTHONS = ["3.13", "3.14"]
# The lower bounds in pyproject.toml, and the oldest common-compat that this Airflow accepts.
LOWEST = [
    "aiohttp<3.11",
    "apache-airflow-providers-amazon==9.12.0",
    "httpx==0.27.2",
]
OLDEST_COMMON_COMPAT = {"2.11": "1.7.3", "3.0": "1.7.3"}
NAMES = [f"{airflow}-{end}" for airflow in AIRFLOWS for end in ("lowest", "newest")]
SHORT = ["2.11-lowest", "3.0-lowest", "3.4-newest"]
WITH_GALLERY = ("3.1", "3.2", "3.3", "3.4")
# One after the other: they share a running Airflow.
OF_GALLERY = ["--numprocesses=0", "tests/gallery", "tests/compat/test_compat_gallery.py"]
# The docs and the examples are written for 3.3 and newer.
BELOW_3_3 = ("2.11", "3.0", "3.1", "3.2")
TESTS_BELOW_3_3 = [
    *("tests/compat", "tests/unit", "tests/operators", "tests/mirroring", "tests/batch", "tests/emulator"),
    *("tests/test_airflow_compat.py", "tests/test_layers.py"),
]
PAGE = """---
orphan: true
---

# On every supported Airflow

`make matrix` wrote this page on {date}, on {cores} cores, with airflow-provider-gptimg {version}. Each Airflow ran
the tests twice: with the lowest versions that the package accepts, on the oldest Python, and with the newest ones.
Skipped tests are about what this Airflow does not have. Below 3.3 the tests of the docs and the examples are left
out, which are written for 3.3.

{table}
"""
SLOW = "system or chaos or registry"
SHORT_TESTS = ["tests/compat", "tests/test_airflow_compat.py", "tests/test_layers.py", "tests/test_metadata.py"]


def lock(name: str) -> None:
    """Resolve the lock of `name` again."""
    airflow, _, end = name.partition("-")
    constraints = list(AIRFLOWS[airflow])
    if end == "lowest":
        constraints += LOWEST
        constraints.append(f"apache-airflow-providers-common-compat=={OLDEST_COMMON_COMPAT.get(airflow, '1.7.4')}")
    options = ["--extra", "emulator", "--group", "test", "--constraint", "-", "--universal", "--python-version", "3.11"]
    if airflow in WITH_GALLERY:
        options += ["--group", "browser"]
    options += ["--upgrade", "--generate-hashes", "--no-emit-index-url", "--no-annotate", "--no-header"]
    options += ["--no-emit-package", "airflow-provider-gptimg", "--output-file", str(lock_of(name))]
    command = [*UV, "pip", "compile", "pyproject.toml", *options]
    subprocess.run(command, input="\n".join(constraints), text=True, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def lock_of(name: str) -> Path:
    return HERE / f"airflow-{name}.lock"


def install(name: str, python: str) -> Path | None:
    """Return the interpreter of an environment for `name`, made from its lock; None without such a Python here."""
    if subprocess.run([*UV, "python", "find", "--no-python-downloads", python], capture_output=True).returncode:
        return None
    environment = ROOT / f".venv-{name}-py{python}"
    interpreter = environment / "bin/python"
    subprocess.run([*UV, "venv", "--allow-existing", "--python", python, str(environment)], check=True)
    pip = [*UV, "pip"]
    options = ["--python", str(interpreter)]
    compiled = ["--require-hashes", "--compile-bytecode"]
    subprocess.run([*pip, "sync", *options, *compiled, str(lock_of(name))], check=True)
    editable = ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    subprocess.run([*pip, "install", *options, *editable], check=True)
    return interpreter


def run(name: str, python: str, tests: Iterable[str], without: str = SLOW) -> dict[str, Any] | None:
    """Run `tests` there, and return what came of them; None without such a Python here.

    :param without: Marks of tests that are left out.
    """
    interpreter = install(name, python)
    if interpreter is None:
        return None
    report = interpreter.parent / "junit.xml"
    started = monotonic()
    # As in `make test`: three processes for two cores.
    options = ["--numprocesses", str((os.cpu_count() or 2) * 3 // 2), "--dist", "loadfile", "--no-loadscope-reorder"]
    options += ["-m", f"not ({without})", "--quiet", "--tb=short", f"--junit-xml={report}"]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    failed = subprocess.run([interpreter, "-m", "pytest", *options, *tests], cwd=ROOT, env=env).returncode
    suite = ElementTree.parse(report).getroot()[0]
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    locked = lock_of(name).read_text()
    versions = {
        package: re.search(rf"^{distribution}==(\S+)", locked, re.MULTILINE)[1]  # type: ignore[index]
        for package, distribution in (
            ("airflow", "apache-airflow"),
            ("amazon", "apache-airflow-providers-amazon"),
            ("common-compat", "apache-airflow-providers-common-compat"),
        )
    }
    ended = {"ok": not failed, "seconds": round(monotonic() - started)}
    return {"name": name, **versions, "python": python, **counts, **ended}


def keep(result: dict[str, Any]) -> None:
    """Write the result over that of an earlier run in the same environment, and keep the others."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = {(row["name"], row["python"]): row for row in (*known, result)}
    RESULTS.write_text(json.dumps([rows[key] for key in sorted(rows)], indent=1) + "\n")


def table(results: Iterable[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| Airflow | Amazon provider | common-compat | Python | passed | failed | skipped |", f"|{'---|' * 7}"]
    for row in results:
        failed = row["failures"] + row["errors"]
        passed = row["tests"] - failed - row["skipped"]
        cells = [row["airflow"], row["amazon"], row["common-compat"], row["python"], passed, failed, row["skipped"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def report() -> None:
    """Write the page of the docs from the last runs that were not short."""
    results = json.loads(RESULTS.read_text())
    page = PAGE.format(
        date=datetime.date.today().isoformat(),
        cores=os.cpu_count(),
        version=version("airflow-provider-gptimg"),
        table=table(results),
    )
    wanted = {(name, python) for name in NAMES for python in pythons_of(name)}
    if missing := wanted - {(row["name"], row["python"]) for row in results}:
        page += f"\nNot run, since this Python was not there: {', '.join(f'{n} on {p}' for n, p in sorted(missing))}.\n"
    REPORT.write_text(page)


def pythons_of(name: str) -> list[str]:
    """Return the Pythons that an environment is to run on."""
    airflow, _, end = name.partition("-")
    return PYTHONS.get(airflow, NEWER_PYTHONS) if end == "newest" else [OLDEST_PYTHON]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "gallery", "lock", "report"])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(NAMES)}")
    if arguments.what == "lock":
        for name in arguments.names or NAMES:
            lock(name)
        return 0
    if arguments.what == "report":
        report()
        return 0

    if arguments.what == "gallery":
        # In two processes: the browser's event loop leaves none to other tests.
        for name, without in product(arguments.names or ["3.1-newest"], (SLOW, "not system")):
            row = run(name, "3.11", OF_GALLERY, without)
            if not (row and row["ok"]):
                return 1
        return 0

    results = []
    for name in arguments.names or (SHORT if arguments.short else NAMES):
        for python in [OLDEST_PYTHON] if arguments.short else pythons_of(name):
            print(f"== {name}, Python {python}", flush=True)
            tests = TESTS_BELOW_3_3 if name.startswith(BELOW_3_3) else ["tests"]
            result = run(name, python, SHORT_TESTS if arguments.short else tests)
            if result is None:
                print(f"There is no Python {python} here: not run")
                continue
            results.append(result)
            if not arguments.short:
                keep(result)
    print(table(results))
    return 0 if results and all(row["ok"] for row in results) else 1


if __name__ == "__main__":
    sys.exit(main())
