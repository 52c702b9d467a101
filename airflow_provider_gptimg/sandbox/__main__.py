# SPDX-License-Identifier: Apache-2.0
"""`python -m airflow_provider_gptimg.sandbox`: run an example DAG from the prompt to the images on this disk."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import signal
import sys
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

    from airflow_provider_gptimg.sandbox.rest import DagRun
    from airflow_provider_gptimg.sandbox.services import Services

_PACKAGE = Path(__file__).parents[1]
# In a wheel they lie inside the package, in the repository beside it.
EXAMPLE_DAGS = next(
    (path for path in (_PACKAGE / "example_dags", _PACKAGE.parent / "example_dags") if path.is_dir()),
    _PACKAGE / "example_dags",
)
OUTPUT = Path("gptimg-out")
RUN_LIMIT = 1200.0
"""Seconds after which a run is given up."""

# No example has a timetable, so that nothing starts by itself but what an asset starts.
_LET_ASSETS_START_DAGS = {
    "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "True",
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
}

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if problem := _missing():
        parser.error(f"{problem}: pip install 'airflow-provider-gptimg[sandbox]'")
    if os.environ.get("GPTIMG_API_KEY") and not os.environ.get("GPTIMG_BUCKET"):
        parser.error("GPTIMG_API_KEY means the real API: name a bucket for its images in GPTIMG_BUCKET too")
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        return _run(options)
    except (RuntimeError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_gptimg.sandbox",
        description="Run an example DAG on a throw-away Airflow, with a stand-in of the API and an S3 in memory. "
        f"The images are saved to ./{OUTPUT}/.",
        epilog="With GPTIMG_API_KEY and GPTIMG_BUCKET in the environment it runs on the real API, which costs "
        "credits, and on the real S3.",
    )
    examples = sorted(path.stem for path in EXAMPLE_DAGS.glob("example_*.py"))
    parser.add_argument("--dag", choices=examples, default="example_gptimg_to_s3", help="default: %(default)s")
    parser.add_argument("--speed", type=_speed, default=5.0, help="of the stand-in, as a factor; default: %(default)g")
    parser.add_argument("--keep", action="store_true", help="leave Airflow up at the end, until Ctrl-C")
    return parser


def _speed(text: str) -> float:
    if not 0 < (factor := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return factor


def _missing() -> str | None:
    """Return what keeps the sandbox from running here, in words; None if nothing does."""
    try:
        version = importlib.metadata.version("apache-airflow")
    except importlib.metadata.PackageNotFoundError:
        return "The sandbox needs Airflow"
    if tuple(int(part) for part in version.split(".")[:2]) < (3, 3):
        return f"The sandbox needs Airflow 3.3 or newer, and this is {version}"
    for module in ("aiohttp", "PIL", "moto", "flask_cors"):
        if importlib.util.find_spec(module) is None:
            return f"The sandbox needs {module}"
    return None


def _interrupt(number: int, frame: object) -> NoReturn:
    # Once is enough: a second Ctrl-C must not keep the first from stopping what was started.
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _services(speed: float) -> AbstractContextManager[Services]:
    from airflow_provider_gptimg.sandbox.services import real_services, stand_ins

    api_key = os.environ.get("GPTIMG_API_KEY")
    return real_services(api_key, os.environ["GPTIMG_BUCKET"]) if api_key else stand_ins(speed)


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from airflow_provider_gptimg.sandbox.standalone import StandaloneAirflow

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
    with _services(options.speed) as services:
        console.print(f"Using {services.names}.")
        airflow = StandaloneAirflow(EXAMPLE_DAGS, services.connections | _LET_ASSETS_START_DAGS)
        try:
            began = time.monotonic()
            console.print("Starting Airflow in a throw-away home …")
            with console.status("some 15 s, on an idle machine"):
                airflow.start()
            started_in = time.monotonic() - began
            console.print(f"It is up after {started_in:.0f} s, at {airflow.url}")
            console.print(f"Log in as {airflow.username}, password {airflow.password}\n")
            run = airflow.trigger(options.dag, {"bucket": services.bucket})
            succeeded = _show(run, services, console)
            if options.keep:
                console.print(f"\nAirflow stays at {run.url} until Ctrl-C.")
                with suppress(SystemExit):
                    threading.Event().wait()
            return 0 if succeeded else 1
        finally:
            console.print("Stopping Airflow …")
            airflow.stop()


def _show(run: DagRun, services: Services, console: Console) -> bool:
    """Show how a run goes, what came of it, and the runs that it starts; return whether all of them succeeded."""
    from airflow_provider_gptimg.sandbox import show

    console.print(f"Running {run.dag_id}.\n")
    succeeded = show.follow(run, console, RUN_LIMIT, services.books) == "success"
    console.print()
    if not succeeded:
        show.show_failures(run, console)
        console.print(f"\n{run.dag_id} failed; the log above says why.")
        return False
    show.show_stages(run, console)
    objects = show.mirrored_objects(run, services.s3)
    if objects:
        console.print()
        show.show_objects(objects, console)
        show.save_images(objects, services.s3, OUTPUT)
        console.print(f"\nThe images are in ./{OUTPUT}/ too.")
    show.show_batches(run, console)
    followers = run.started_runs()
    show.show_asset_events(run, console)
    console.print()
    return all(_show(follower, services, console) for follower in followers)


if __name__ == "__main__":
    sys.exit(main())
