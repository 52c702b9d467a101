# SPDX-License-Identifier: Apache-2.0
"""`python -m airflow_provider_gptimg.sandbox`: run an example DAG, or your own, from the prompt to images on disk."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from airflow_provider_gptimg.sandbox.dags import FoundDags, has_dag_files

if TYPE_CHECKING:
    from rich.console import Console

    from airflow_provider_gptimg.sandbox.rest import DagRun
    from airflow_provider_gptimg.sandbox.services import Services
    from airflow_provider_gptimg.sandbox.standalone import StandaloneAirflow

_PACKAGE = Path(__file__).parents[1]
# In a wheel they lie inside the package, in the repository beside it.
EXAMPLE_DAGS = next(
    (path for path in (_PACKAGE / "example_dags", _PACKAGE.parent / "example_dags") if path.is_dir()),
    _PACKAGE / "example_dags",
)
DEFAULT_EXAMPLE = "example_gptimg_to_s3"
OUTPUT = Path("gptimg-out")
RUN_LIMIT = 1200.0
"""Seconds after which a run is given up."""

_SETTINGS = {
    # So that an asset can start a DAG. No example has a timetable.
    "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "True",
    "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
}
_PACKAGES = {"aiohttp": "aiohttp", "PIL": "Pillow", "moto": "moto", "flask_cors": "moto[server]"}
_EXTRA = "pip install 'airflow-provider-gptimg[sandbox]'"

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if problem := _missing() or _wrong(options):
        parser.exit(2, f"{problem}\n")
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        return _run(options)
    except (LookupError, RuntimeError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_gptimg.sandbox",
        description="Run an example DAG, or your own, on a throw-away Airflow, with a stand-in for the API and an S3 "
        f"in memory. The images are saved to ./{OUTPUT}/ when a run has ended.",
        epilog="With GPTIMG_API_KEY and GPTIMG_BUCKET in the environment it runs on the real API, which costs "
        "credits, and on the real S3.",
    )
    parser.add_argument("--dags-folder", type=Path, metavar="DIR", help="your DAGs; default: the package's examples")
    parser.add_argument(
        "--dag", metavar="NAME", help=f"which one to run at once; default: the folder's only DAG, or {DEFAULT_EXAMPLE}"
    )
    parser.add_argument(
        "--put",
        type=Path,
        metavar="DIR",
        help="upload DIR/BUCKET/KEY to the S3 in memory as s3://BUCKET/KEY before anything runs",
    )
    parser.add_argument(
        "--speed",
        type=_speed,
        default=5.0,
        help="how many times faster than the real API the stand-in is; default: %(default)g",
    )
    parser.add_argument("--keep", action="store_true", help="leave Airflow up at the end, until Ctrl-C")
    return parser


def _speed(text: str) -> float:
    if not 0 < (factor := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return factor


def _missing() -> str | None:
    """Return what keeps the sandbox from running here, in one line; None if nothing does."""
    try:
        version = importlib.metadata.version("apache-airflow")
    except importlib.metadata.PackageNotFoundError:
        return f"The sandbox needs Airflow: {_EXTRA}"
    if tuple(int(part) for part in version.split(".")[:2]) < (3, 3):
        return f"The sandbox needs Airflow 3.3 or newer, and this is {version}: {_EXTRA}"
    for module, package in _PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            return f"The sandbox needs {package}: {_EXTRA}"
    return None


def _wrong(options: argparse.Namespace) -> str | None:
    """Return what is wrong with the command, in one line; None if nothing is."""
    if os.environ.get("GPTIMG_API_KEY") and not os.environ.get("GPTIMG_BUCKET"):
        return "GPTIMG_API_KEY means the real API: name a bucket for its images in GPTIMG_BUCKET too"
    if options.put and os.environ.get("GPTIMG_API_KEY"):
        return "--put fills the S3 in memory: with GPTIMG_API_KEY, upload the files to the real S3 yourself"
    if options.put and not any(path.is_file() for path in options.put.glob("*/**/*")):
        return f"--put: {options.put} holds no file BUCKET/KEY, such as {options.put}/my-bucket/prompts.csv"
    folder: Path | None = options.dags_folder
    if folder is None:
        options.dag = options.dag or DEFAULT_EXAMPLE
        examples = FoundDags(sorted(path.stem for path in EXAMPLE_DAGS.glob("example_*.py")), {})
        try:
            examples.choose(options.dag, "the examples")
        except LookupError as error:
            return str(error)
    elif not folder.is_dir():
        return f"--dags-folder: {folder} is not a folder"
    elif not has_dag_files(folder):
        return f"--dags-folder: {folder} has no Python file, so no DAG"
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

    from airflow_provider_gptimg.sandbox.services import put_files
    from airflow_provider_gptimg.sandbox.standalone import StandaloneAirflow

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
    own: Path | None = options.dags_folder
    # The examples are switched on, so that an asset can start one; your own DAGs as in any Airflow.
    settings = _SETTINGS | {"AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": str(own is not None)}
    with _services(options.speed) as services:
        console.print(f"Using {services.names}.")
        if options.put:
            console.print(f"Uploaded {', '.join(put_files(options.put, services.s3))}.")
        airflow = StandaloneAirflow(own or EXAMPLE_DAGS, settings | services.settings)
        try:
            began = time.monotonic()
            console.print("Starting Airflow in a throw-away home …")
            with console.status("some 15 s, on an idle machine"):
                dag_id: str | None = options.dag
                if own:
                    dag_id = _choose(airflow.find_dags(), options, console)
                airflow.start()
                for conn_id, connection in services.connections.items():
                    airflow.api.add_connection(conn_id, connection)
            console.print(f"It is up after {time.monotonic() - began:.0f} s.\n")
            _show_places(airflow, services, own, console)
            succeeded, page = True, airflow.url
            if dag_id:
                try:
                    # An error of importing another file is not this DAG's.
                    run = airflow.api.trigger(dag_id, None if own else {"bucket": services.bucket}, other_errors=True)
                    if timetable := airflow.api.call("GET", f"/dags/{dag_id}")["timetable_summary"]:
                        console.print(
                            f"{dag_id} is switched on and follows its schedule ({timetable}): Airflow may start other "
                            "runs of it, whose credits count too."
                        )
                    succeeded, page = _show(run, services, console), run.url
                except RuntimeError as error:
                    if not options.keep:
                        raise
                    console.print(f"{error}")  # it can be mended, or run in the UI
                    succeeded = False
            if options.keep:
                console.print(f"\nAirflow stays at {page} until Ctrl-C.")
                with suppress(SystemExit):
                    _watch(airflow, services, console)
            return 0 if succeeded else 1
        finally:
            console.print("Stopping Airflow …")
            airflow.stop()


def _choose(found: FoundDags, options: argparse.Namespace, console: Console) -> str | None:
    """Return the DAG to run; None: none yet, a person starts one in the UI.

    :raises LookupError: The folder has no such DAG, or has several and the command names none.
    """
    for path, error in found.errors.items():
        console.print(f"{path} cannot be imported: {error}")
    if not found.dag_ids and found.errors and options.keep and not options.dag:
        return None  # it is mended while Airflow is up
    dag_id = found.choose(options.dag, str(options.dags_folder))
    if dag_id is None:
        if not options.keep:
            raise LookupError(f"Name one with --dag ({', '.join(found.dag_ids)}), or use --keep and run it in the UI")
        console.print(f"Run one of {', '.join(found.dag_ids)} in the UI.")
    elif not options.dag:
        console.print(f"{dag_id} is run once Airflow is up, since it is the only DAG in {options.dags_folder}.")
    return dag_id


def _show_places(airflow: StandaloneAirflow, services: Services, own: Path | None, console: Console) -> None:
    places = {"Airflow": f"{airflow.url}", "Login": f"{airflow.username}, password {airflow.password}"}
    places |= services.addresses | {"Images": f"saved to {OUTPUT.resolve()} when a run has ended"}
    here = {"AIRFLOW_HOME": str(airflow.home)}
    if own:
        here["AIRFLOW__CORE__DAGS_FOLDER"] = str(own.resolve())
    places["Shell"] = f"{_assigned(here)} airflow tasks clear …, or any other command of Airflow"
    if services.settings:
        places["Spending"] = f"{_assigned(here | services.settings)} python -m airflow_provider_gptimg.spending"
    if own:
        places["DAGs"] = f"{own.resolve()}, read again a few seconds after a change; switch one on to let it run"
    for name, place in places.items():
        console.print(f"{name:8} {place}", soft_wrap=True)  # to be copied
    console.print()


def _assigned(variables: Mapping[str, str]) -> str:
    """Return environment variables as a shell takes them before a command."""
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())


def _watch(airflow: StandaloneAirflow, services: Services, console: Console) -> NoReturn:
    """Print what happens from now on: credits that are spent, runs that end, files that cannot be imported."""
    from airflow_provider_gptimg.sandbox.watch import Watch

    watch = Watch(airflow.api, services, OUTPUT)
    while True:
        for line in watch.news():
            console.print(line)
        time.sleep(2)


def _show(run: DagRun, services: Services, console: Console) -> bool:
    """Show how a run goes, what came of it, and the runs that it starts; return whether all of them succeeded."""
    from airflow_provider_gptimg.sandbox import show

    console.print(f"Running {run.dag_id}.\n")
    succeeded = show.follow(run, console, RUN_LIMIT, services.books) == "success"
    console.print()
    if not succeeded:
        show.show_failures(run, console)
        console.print(f"\n{run.dag_id} failed, so nothing was saved to ./{OUTPUT}/; the log above says why.")
        return False
    show.show_stages(run, console)
    objects = show.mirrored_objects(run, services.s3)
    if objects:
        console.print()
        show.show_objects(objects, console)
        show.save_images(objects, services.s3, OUTPUT)
        console.print(f"\nThe images are in ./{OUTPUT}/ too.")
    for line in show.batch_lines(run):
        console.print(line)
    followers = run.started_runs()
    show.show_asset_events(run, console)
    console.print()
    return all(_show(follower, services, console) for follower in followers)


if __name__ == "__main__":
    sys.exit(main())
