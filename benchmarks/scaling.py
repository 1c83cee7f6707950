"""Extraction on one machine's cores by Dask, what the caller of a cluster can take, and what a fit gains.

    python benchmarks/scaling.py cores PHOTOS --copies 48
    python benchmarks/scaling.py caller
    python benchmarks/scaling.py fit features.h5
    python benchmarks/scaling.py cost --price 0.05

`cores` extracts without Dask and with clusters of one and two workers, which have opened the network before. `caller`
has workers give features without computing any, so that only the caller and the way to it limit the rate. `cost` works
out a million images from the rates in docs/results/extraction.md.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from distributed import Client, LocalCluster

import deepfeat
from deepfeat import computation, distributed
from deepfeat.images import FileStamp, LoadedImage

#: Cores of each worker, which has as many threads; the first is the ratio's base.
CLUSTERS: dict[str, list[set[int]]] = {
    "1 worker on a core": [{0}],
    "1 worker on both cores": [{0, 1}],
    "2 workers on a core each": [{0}, {1}],
}
DIM = 1280


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    cores = commands.add_parser("cores")
    cores.add_argument("photos", type=Path)
    cores.add_argument("--copies", type=int, default=1, help="of each image, each a file of another content")
    cores.add_argument("--rounds", type=int, default=3)
    cores.add_argument("--network", default="EfficientNetLite0")
    cores.set_defaults(run=measure_cores)
    caller = commands.add_parser("caller")
    caller.add_argument("--images", type=int, nargs="+", default=[50_000, 200_000])
    caller.add_argument("--rate", type=float, nargs="+", default=[65.0, 1000.0], help="of a worker, by its own account")
    caller.set_defaults(run=measure_caller)
    fit = commands.add_parser("fit")
    fit.add_argument("cache", type=Path)
    fit.add_argument("--backbone", default="EfficientNetLite0")
    fit.add_argument("--positive", default="MEL")
    fit.set_defaults(run=measure_fit)
    cost = commands.add_parser("cost")
    cost.add_argument("--price", type=float, default=0.05, help="of a core for an hour")
    cost.set_defaults(run=print_cost)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n")
    arguments.run(arguments)


def make_cluster(n_workers: int, n_threads: int) -> LocalCluster:
    return LocalCluster(n_workers=n_workers, threads_per_worker=n_threads, dashboard_address=":0", memory_limit=0)


def measure_cores(arguments: argparse.Namespace) -> None:
    extract = functools.partial(deepfeat.extract, backbones=arguments.network, progress=False)
    runs: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = multiply(arguments.photos, folder / "photos", arguments.copies)
        extract(photos[:32], cache=folder / "warm.h5")
        for number in range(arguments.rounds):
            here, n_images = folder / f"{number}.h5", len(photos)
            runs.setdefault("without Dask", []).append(take_time(lambda h=here: extract(photos, cache=h), n_images))
            for name, cores in CLUSTERS.items():
                started = time.perf_counter()
                with make_cluster(len(cores), len(cores[0])) as cluster, Client(cluster) as client:
                    pin(client, cores)
                    extract(photos[: 64 * len(cores)], cache=folder / f"{name}{number}.first", client=client)
                    start, there = time.perf_counter() - started, folder / f"{name}{number}.h5"
                    work = functools.partial(extract, photos, cache=there, client=client)
                    runs.setdefault(name, []).append(take_time(work, n_images, client, start))
        difference = compare(deepfeat.open_features(here), deepfeat.open_features(there), arguments.network)
    base = statistics.median(run.rate for run in runs[next(iter(CLUSTERS))])
    print("| | images/s | ratio | workers, CPU ms an image | caller, CPU ms an image | start, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, several in runs.items():
        run = sorted(several, key=lambda run: run.rate)[len(several) // 2]
        workers = f"{run.workers:.1f}" if run.workers else ""
        start = f"{run.start:.1f}" if run.start else ""
        print(f"| {name} | {run.rate:.1f} | {run.rate / base:.2f} | {workers} | {run.caller:.1f} | {start} |")
    print(f"\nLargest difference of features over the largest feature, with and without Dask: {difference:.1e}.")


class Run(NamedTuple):
    """Images per second, and milliseconds of the processors' time for an image."""

    rate: float
    workers: float
    caller: float
    start: float


def take_time(work: Callable[[], object], n_images: int, client: Client | None = None, start: float = 0.0) -> Run:
    """Work, with the time of this process and of all workers."""

    def workers_time() -> float:
        return sum(client.run(time.process_time).values()) if client else 0.0

    own, others = time.process_time(), workers_time()
    took = seconds(work)
    own, others = time.process_time() - own, workers_time() - others
    return Run(n_images / took, 1000 * others / n_images, 1000 * own / n_images, start)


def pin(client: Client, cores: list[set[int]]) -> None:
    """Keep all threads of each worker on cores; those that it starts later inherit them."""

    def keep(some: set[int]) -> None:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), some)

    for worker, some in zip(client.nthreads(), cores, strict=True):
        client.run(keep, some, workers=[worker])


def multiply(photos: Path, folder: Path, copies: int) -> list[Path]:
    """Write copies of images, which differ in bytes after their end."""
    folder.mkdir()
    written = []
    for photo in sorted(path for path in photos.rglob("*") if path.is_file()):
        for number in range(copies):
            written.append(folder / f"{number:03d}-{photo.name}")
            written[-1].write_bytes(photo.read_bytes() + str(number).encode())
    return sorted(written)


def compare(one: deepfeat.FeatureStore, other: deepfeat.FeatureStore, name: str) -> float:
    a, b = one.features(name), other.features(name)
    return float(np.abs(a - b).max() / np.abs(a).max())


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# A caller whose workers need no time


def pretend(rate: float, parcel: distributed.Parcel, shard: distributed.Shard) -> distributed.ComputedShard:
    """Give features of the usual size for every image of a shard."""
    parts = []
    for start in range(0, len(shard.items), computation.CHUNK):
        chunk = shard.items[start : start + computation.CHUNK]
        images = [LoadedImage(i.row, FileStamp(1, 1), i.row.to_bytes(32, "little"), {}, None) for i in chunk]
        output = computation.Output([i.row for i in chunk], [np.ones((len(chunk), DIM), np.float32)])
        parts.append(computation.Computed(images, [output], [computation.Opened([(DIM,)], {})]))
    return distributed.ComputedShard(parts, len(shard.items) / rate, (), "nowhere")


def measure_caller(arguments: argparse.Namespace) -> None:
    print("| images | worker's rate | images/s | MB/s | caller, CPU ms an image | caller's peak memory, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for rate, n_images in itertools.product(arguments.rate, arguments.images):
        run = [sys.executable, __file__, "caller", "--images", str(n_images), "--rate", str(rate)]
        if len(arguments.images) * len(arguments.rate) > 1:  # the peak is of one process
            output = subprocess.run(run, check=True, capture_output=True, text=True).stdout
            print(output.strip().splitlines()[-1], flush=True)
        else:
            print(take_all(n_images, rate))


def take_all(n_images: int, rate: float) -> str:
    """Extract in this process from workers that pretend; a line of the table."""
    distributed._compute_shard = functools.partial(pretend, rate)
    with tempfile.TemporaryDirectory() as scratch, make_cluster(2, 8) as cluster, Client(cluster) as client:
        paths = [f"{scratch}/{number:08d}.jpg" for number in range(n_images)]
        started, cpu = time.perf_counter(), time.process_time()
        deepfeat.extract(paths, "EfficientNetLite0", Path(scratch, "f.h5"), client=client, progress=False)
        took, cpu = time.perf_counter() - started, time.process_time() - cpu
    megabytes = n_images * DIM * 4 / 1e6
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return (
        f"| {n_images:,} | {rate:,.0f} | {n_images / took:,.0f} | {megabytes / took:,.0f} | "
        f"{1000 * cpu / n_images:.3f} | {int(peak.split()[1]) / 1024:,.0f} |"
    )


def measure_fit(arguments: argparse.Namespace) -> None:
    fits: dict[str, dict[str, Any]] = {
        "LinearSVC, two values of class_weight": {"class_weight": ["balanced", None]},
        "SVC rbf, three values of gamma": {
            "kernel": "rbf",
            "param_grid": {"C": [1.0, 10.0], "gamma": [1e-4, 3e-4, 1e-3]},
        },
    }
    same = {"backbones": arguments.backbone, "positive": arguments.positive, "ledger": False}
    print("| fit | | seconds | workers, CPU s | caller, CPU s |\n| --- | --- | --- | --- | --- |")
    for name, options in fits.items():
        work = functools.partial(deepfeat.fit_svm, arguments.cache, **same, **options)
        print_fit(name, "without Dask", take_time(work, 1000))
        for n_workers in (1, 2):
            with make_cluster(n_workers, 1) as cluster, Client(cluster) as client:
                client.run(import_fit)
                run = take_time(functools.partial(work, client=client), 1000, client)
                print_fit(name, f"{n_workers} worker(s)", run)


def print_fit(name: str, way: str, run: Run) -> None:
    print(f"| {name} | {way} | {1000 / run.rate:.1f} | {run.workers:.1f} | {run.caller:.1f} |", flush=True)


def import_fit() -> None:
    deepfeat.fit_svm  # noqa: B018


def print_cost(arguments: argparse.Namespace) -> None:
    """Core hours and price of a million images, from the first table of the speed of extraction, of two cores."""
    text = Path(__file__).parents[1].joinpath("docs", "results", "extraction.md").read_text(encoding="utf-8")
    table = text.split("| --- |", 1)[1].split("\n\n")[0]
    print("| network | core hours, float32 | price | core hours, bfloat16 | price |\n| --- | --- | --- | --- | --- |")
    for name, *rates in re.findall(r"^\| (\w+) \| ([\d.]+) .*?\| ([\d.]+) ", table, re.MULTILINE):
        hours = [2 * 1e6 / float(rate) / 3600 for rate in rates]
        print(f"| {name} | {' | '.join(f'{h:.1f} | {arguments.price * h:.2f}' for h in hours)} |")


if __name__ == "__main__":
    main()
