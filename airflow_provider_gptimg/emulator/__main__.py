# SPDX-License-Identifier: Apache-2.0
"""`python -m airflow_provider_gptimg.emulator`: run the emulator until a signal stops it."""

from __future__ import annotations

import argparse
import logging
import shlex
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_gptimg.emulator import Emulator


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        from airflow_provider_gptimg.emulator import Emulator
        from airflow_provider_gptimg.emulator.state import poll_schedule
    except ImportError as missing:
        parser.exit(2, f"{missing}\n")
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s")
    logging.getLogger("airflow_provider_gptimg.emulator").setLevel(logging.DEBUG)

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        emulator = Emulator(
            port=options.port,
            api_key=options.api_key,
            credits=options.credits,
            speed=options.speed,
            seed=options.seed,
            fail_rate=options.fail_rate,
            rate_limit_rate=options.rate_limit_rate,
            record_calls=not options.no_calls,
            extra=None if options.speed == 1.0 else poll_schedule(options.speed),
        )
        emulator.latency = options.latency
        emulator.start()
    except (ValueError, OSError, OverflowError) as error:
        parser.error(str(error))
    try:
        _introduce(emulator, options.credits)
        stopped.wait()
    finally:
        emulator.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_gptimg.emulator",
        description="A stand-in for the gpt-image-2 API on 127.0.0.1, to try DAGs without spending credits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=8099, help="TCP port; 0 takes a free one")
    parser.add_argument("--api-key", default="gptimg-emulator-key", help="the key that is accepted")
    parser.add_argument("--credits", type=int, default=1000, help="balance at the start")
    parser.add_argument("--speed", type=float, default=1.0, help="10: a generation takes 4.5 to 6 s, not 45 to 60")
    parser.add_argument("--fail-rate", type=float, default=0.0, help="share of generations that fail, 0 to 1")
    parser.add_argument("--rate-limit-rate", type=float, default=0.0, help="share of calls answered 429, 0 to 1")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds added to each answer of the API")
    parser.add_argument("--seed", type=int, help="makes ids, durations and chances repeatable")
    parser.add_argument("--no-calls", action="store_true", help="keep no list of calls: saves memory in long runs")
    return parser


def _introduce(emulator: Emulator, credits: int) -> None:
    connection = shlex.quote(emulator.connection_json)
    print(
        f"The gpt-image-2 emulator listens on {emulator.base_url}, with {credits} credits; Ctrl-C stops it.",
        "Connect Airflow to it with one of",
        f"  airflow connections add gptimg_default --conn-json {connection}",
        f"  export AIRFLOW_CONN_GPTIMG_DEFAULT={connection}",
        sep="\n",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
