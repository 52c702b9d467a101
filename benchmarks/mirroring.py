# SPDX-License-Identifier: Apache-2.0
"""How fast images get from an HTTP host into S3, and how much memory that takes: this transfer beside other ways."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from urllib.request import urlopen

from benchmarks.mirroring_servers import BUCKET, s3_client
from benchmarks.tables import print_table

MIB = 1024 * 1024
CPUS = sorted(os.sched_getaffinity(0))
"""The servers get the first one and the worker the last one."""

TITLES = {
    "gptimg": "**GptImgToS3Operator**",
    "http_to_s3": "HttpToS3Operator, a task an image",
    "load_bytes": "requests + load_bytes, one hook",
    "spooled_put": "bare spooled file → put_object",
    "streamed_upload": "bare upload_fileobj of the stream",
}


@dataclass(frozen=True)
class Case:
    """So many images of so many MiB.

    :param latency: Seconds to the first byte, of the image host and of S3.
    """

    count: int
    mib: float
    concurrency: int = 4
    latency: float = 0.0

    @property
    def megabytes(self) -> float:
        return self.count * self.mib * MIB / 1e6


@dataclass(frozen=True)
class Run:
    seconds: float
    growth: float
    cpu: float


@dataclass(frozen=True)
class Bench:
    """Where workers run.

    :param s3: `sink`, the S3 of `mirroring_servers`, or `moto`.
    :param home: Airflow's.
    """

    s3: str
    home: str

    @contextmanager
    def servers(self, latency: float = 0.0) -> Iterator[dict[str, str]]:
        """Run an image host and an S3 that know nothing yet, on a CPU of their own; yields their URLs."""
        options = ["--latency", str(latency), *(["--moto"] if self.s3 == "moto" else [])]
        command = [sys.executable, "-m", "benchmarks.mirroring_servers", *options]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            os.sched_setaffinity(process.pid, CPUS[:1])
            assert process.stdout
            ports = json.loads(process.stdout.readline())
            yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
            process.kill()

    def fresh(self, method: str, case: Case) -> Run:
        """Run a method, and see that all of it arrived."""
        with self.servers(case.latency) as urls:
            run = work(method, case, urls, self.home)
            stored = sizes(urls)
        assert stored == [int(case.mib * MIB)] * case.count, f"{method} brought {len(stored)} of {case.count} images"
        return run


def sent(urls: dict[str, str]) -> int:
    """Return how many bytes of images were asked for so far."""
    with urlopen(f"{urls['images']}/sent") as answer:
        return int(answer.read())


def sizes(urls: dict[str, str]) -> list[int]:
    """Return the size of each object in the bucket."""
    s3 = s3_client(urls["s3"])
    return [found["Size"] for found in s3.list_objects_v2(Bucket=BUCKET).get("Contents", ())]


def work(method: str, case: Case, urls: dict[str, str], home: str) -> Run:
    """Run a method in a worker process of its own."""
    job = {
        "images_url": urls["images"],
        "s3_url": urls["s3"],
        "count": case.count,
        "size": int(case.mib * MIB),
        "concurrency": case.concurrency,
    }
    aws = {"region_name": "us-east-1", "endpoint_url": urls["s3"]}
    environment = {
        **os.environ,
        "AIRFLOW_HOME": home,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(
            {"conn_type": "aws", "login": "bench", "password": "benchbench", "extra": aws}
        ),
        "AIRFLOW_CONN_IMAGES": json.dumps({"conn_type": "http", "host": urls["images"]}),
        "AIRFLOW_CONN_GPTIMG_DEFAULT": json.dumps({"conn_type": "gptimg", "host": urls["images"], "password": "bench"}),
        "no_proxy": "127.0.0.1,localhost",
    }
    command = [sys.executable, "-m", "benchmarks.mirroring_methods", method, json.dumps(job)]
    ended = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: os.sched_setaffinity(0, CPUS[-1:]),
    )
    if ended.returncode:
        raise RuntimeError(f"{method} failed:\n{ended.stderr[-3000:]}")
    return Run(**json.loads(ended.stdout.splitlines()[-1]))


def compare(case: Case, rounds: int, bench: Bench) -> None:
    """Print what each method reached, medians of interleaved rounds; ratios are medians of those within a round."""
    runs: dict[str, list[Run]] = {method: [] for method in TITLES}
    for _ in range(rounds):
        for method, done in runs.items():
            done.append(bench.fresh(method, case))

    def ratio(method: str, other: str) -> str:
        pairs = zip(runs[method], runs[other], strict=True)
        return f"{median(theirs.seconds / ours.seconds for ours, theirs in pairs):.2f}"

    print_table(
        f"{case.count} × {case.mib:g} MiB, {rounds} rounds",
        ["", "MB/s", "× HttpToS3Operator", "× bare", "peak memory + MiB", "CPU s"],
        [
            [
                title,
                f"{median(case.megabytes / run.seconds for run in runs[method]):.0f}",
                ratio(method, "http_to_s3"),
                ratio(method, "spooled_put"),
                f"{max(run.growth for run in runs[method]):.1f}",
                f"{median(run.cpu for run in runs[method]):.2f}",
            ]
            for method, title in TITLES.items()
        ],
    )


def at_a_time(rounds: int, bench: Bench) -> None:
    """Print what concurrency brings where the first byte takes its time."""
    cases = [Case(16, 2, concurrency, latency=0.05) for concurrency in (1, 4, 8)]
    runs = [[bench.fresh("gptimg", case).seconds for case in cases] for _ in range(rounds)]
    print_table(
        f"16 × 2 MiB with 50 ms to the first byte on either side, {rounds} rounds",
        ["at a time", "MB/s", "× one at a time"],
        [
            [
                str(case.concurrency),
                f"{median(case.megabytes / run[number] for run in runs):.0f}",
                f"{median(run[0] / run[number] for run in runs):.1f}",
            ]
            for number, case in enumerate(cases)
        ],
    )


def again(case: Case, rounds: int, bench: Bench) -> None:
    """Print what a second run costs, in which all is there already."""
    rows = []
    for _ in range(rounds):
        with bench.servers(case.latency) as urls:
            first = work("gptimg", case, urls, bench.home)
            before = sent(urls)
            second = work("gptimg", case, urls, bench.home)
            rows.append((first, second, sent(urls) - before))
    print_table(
        f"{case.count} × {case.mib:g} MiB twice, {case.latency * 1000:g} ms to the first byte, {rounds} rounds",
        ["", "s", "CPU s", "MB downloaded"],
        [
            [
                "first run",
                f"{median(first.seconds for first, _, _ in rows):.2f}",
                f"{median(first.cpu for first, _, _ in rows):.2f}",
                f"{case.megabytes:.0f}",
            ],
            [
                "second run",
                f"{median(second.seconds for _, second, _ in rows):.2f}",
                f"{median(second.cpu for _, second, _ in rows):.2f}",
                f"{max(downloaded for _, _, downloaded in rows) / 1e6:.0f}",
            ],
            ["second to first", f"{median(second.seconds / first.seconds for first, second, _ in rows):.0%}", "", ""],
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="three rounds instead of two, and 200 images too")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--s3", choices=["sink", "moto"], default="sink", help="one that forgets bodies, or moto's")
    arguments = parser.parse_args()
    rounds, many = (3, 200) if arguments.full else (2, 40)
    rounds = arguments.rounds or rounds
    with tempfile.TemporaryDirectory(prefix="gptimg-bench-") as home:
        bench = Bench(arguments.s3, home)
        for case in (Case(16, 2), Case(4, 32), *([Case(many, 1.5)] if arguments.full else [])):
            compare(case, rounds, bench)
        at_a_time(rounds, bench)
        for latency in (0.0, 0.05):
            again(Case(many, 1.5, latency=latency), rounds, bench)


if __name__ == "__main__":
    main()
