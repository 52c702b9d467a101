# SPDX-License-Identifier: Apache-2.0
"""`python -m airflow_provider_gptimg.spending`: credits charged, refunded, saved and unknown, from the journal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime

from airflow_provider_gptimg.airflow_compat import act_as_server
from airflow_provider_gptimg.exceptions import GptImgError
from airflow_provider_gptimg.journal.spending import BY, Amounts, read_spending, sum_by
from airflow_provider_gptimg.journal.stores import open_s3_journal

__all__ = ["NO_JOURNAL", "main"]

NO_JOURNAL = (
    "What was spent is read from a journal in S3. Set [gptimg] journal in Airflow's configuration, for example "
    "AIRFLOW__GPTIMG__JOURNAL=s3://my-bucket/gptimg-journal: what is submitted from then on is counted"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 if the journal cannot be read, 2 if it is not in S3."""
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_gptimg.spending",
        description="Credits that were charged, refunded, saved by reuse, and may have been charged. Times are UTC.",
    )
    parser.add_argument("--since", type=_moment, metavar="DATE", help="submitted on that day or later; else all")
    parser.add_argument("--until", type=_moment, metavar="DATE", help="submitted before that day")
    parser.add_argument("--by", choices=list(BY), default="dag", help="what to sum up by (default: dag)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args(arguments)
    act_as_server()
    try:
        with redirect_stdout(sys.stderr):  # Airflow logs to it
            journal = open_s3_journal()
            if journal is None:
                print(NO_JOURNAL)
                return 2
            sums = sum_by(read_spending(journal, since=_seconds(asked.since), until=_seconds(asked.until)), asked.by)
    except GptImgError as error:
        print(error, file=sys.stderr)
        return 1
    total = sum(sums.values(), Amounts())
    if asked.json:
        rows = [{asked.by: group, **amounts.as_dict()} for group, amounts in sums.items()]
        times = {"since": asked.since and asked.since.isoformat(), "until": asked.until and asked.until.isoformat()}
        print(json.dumps({**times, "by": asked.by, "rows": rows, "total": total.as_dict()}, indent=2))
    else:
        _show({**sums, "total": total}, asked.by)
    return 0


def _show(sums: Mapping[str, Amounts], by: str) -> None:
    width = max(map(len, [*sums, by]))
    print(f"{by:{width}}", *(f"{name:>8}" for name in Amounts().as_dict()), sep="  ")
    for group, amounts in sums.items():
        print(f"{group:{width}}", *(f"{credits:8}" for credits in amounts.as_dict().values()), sep="  ")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date such as 2026-11-01") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


if __name__ == "__main__":
    sys.exit(main())
