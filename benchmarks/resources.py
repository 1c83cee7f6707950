"""Memory of an extraction against the number of images, and the time to the first stored batch.

    python benchmarks/resources.py PHOTO.jpg --table docs/results/resources.md

Every extraction runs in an interpreter of its own. PHOTO.jpg is written again and again, each time with
another comment at its end.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COUNTS = (1000, 10000)
EXTRACT = """
import resource, sys, deepfeat
backbone = deepfeat.Backbone('MobileNetV2', weights=None)
deepfeat.extract(sys.argv[1], backbone, sys.argv[2], progress=False, runtime=sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
BUILD = "import tensorflow, keras; keras.applications.MobileNetV2(include_top=False, weights=None)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--table", type=Path, help="write the table here instead of printing it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photo = arguments.photo.read_bytes()
        for count in (32, *COUNTS):
            (folder / str(count)).mkdir()
            for number in range(count):
                (folder / str(count) / f"{number:05d}.jpg").write_bytes(photo + str(number).encode())
        building, cold, warm, under_keras = [], [], [], []
        for number in range(arguments.rounds):
            os.environ["DEEPFEAT_CACHE"] = str(folder / f"conversions{number}")
            building.append(seconds([sys.executable, "-c", BUILD]))
            cold.append(first_batch(folder, "openvino"))
            warm.append(first_batch(folder, "openvino"))
            under_keras.append(first_batch(folder, "keras"))
        memory = {count: extract(folder, count, "openvino") for count in COUNTS}
    base = statistics.median(building)
    starts = {
        "import TensorFlow and build the network": base,
        "deepfeat, OpenVINO, converted before": statistics.median(warm),
        "deepfeat, OpenVINO, the first time": statistics.median(cold),
        "deepfeat, Keras": statistics.median(under_keras),
    }
    lines = [
        "# Memory and start-up of an extraction",
        "",
        "Made by `python benchmarks/resources.py PHOTO.jpg --table docs/results/resources.md`: MobileNetV2, "
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.",
        "",
        "| images | peak memory, MB | ratio |",
        "| --- | --- | --- |",
        *(f"| {n:,} | {value:.0f} | {value / memory[COUNTS[0]]:.3f} |" for n, value in memory.items()),
        "",
        f"Time of a whole process that extracts 32 images, the first batch; median of {arguments.rounds} rounds:",
        "",
        "| | seconds | ratio |",
        "| --- | --- | --- |",
        *(f"| {name} | {value:.2f} | {value / base:.2f} |" for name, value in starts.items()),
        "",
    ]
    text = "\n".join(lines)
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    print(text)


def extract(folder: Path, count: int, runtime: str) -> float:
    """Peak memory, in MB, of a process that extracts some images."""
    output = folder / f"{count}-{runtime}.h5"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-c", EXTRACT, str(folder / str(count)), str(output), runtime]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def first_batch(folder: Path, runtime: str) -> float:
    start = time.perf_counter()
    extract(folder, 32, runtime)
    return time.perf_counter() - start


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
