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
import resource, sys, time, deepfeat
backbone = deepfeat.Backbone('MobileNetV2', weights=None)
deepfeat.extract(sys.argv[1], backbone, sys.argv[2], progress=False, runtime=sys.argv[3])
print(time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
BUILD = """
import time, tensorflow, keras
keras.applications.MobileNetV2(include_top=False, weights=None)
print(time.time())
"""


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
            building.append(run([BUILD])[0])
            cold.append(first_batch(folder, "openvino"))
            warm.append(first_batch(folder, "openvino"))
            under_keras.append(first_batch(folder, "keras"))
        memory = {count: extract(folder, count, "openvino")[1] for count in COUNTS}
    starts = {
        "import TensorFlow and build the network": building,
        "deepfeat, OpenVINO, converted before": warm,
        "deepfeat, OpenVINO, the first time": cold,
        "deepfeat, Keras": under_keras,
    }
    medians = {name: [statistics.median(each) for each in zip(*times, strict=True)] for name, times in starts.items()}
    until, whole = next(iter(medians.values()))
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
        "Seconds from the start of Python until the network is built, or 32 images, the first batch, are stored; and "
        f"until Python has ended. Median of {arguments.rounds} rounds:",
        "",
        "| | until then | ratio | to the end | ratio |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {name} | {a:.2f} | {a / until:.2f} | {b:.2f} | {b / whole:.2f} |" for name, (a, b) in medians.items()),
        "",
    ]
    text = "\n".join(lines)
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    print(text)


def extract(folder: Path, count: int, runtime: str) -> tuple[tuple[float, float], float]:
    """Seconds of a process that extracts some images, see `run`, and its peak memory in MB."""
    output = folder / f"{count}-{runtime}.h5"
    output.unlink(missing_ok=True)
    seconds, said = run([EXTRACT, str(folder / str(count)), str(output), runtime])
    return seconds, float(said[1])


def first_batch(folder: Path, runtime: str) -> tuple[float, float]:
    return extract(folder, 32, runtime)[0]


def run(arguments: list[str]) -> tuple[tuple[float, float], list[str]]:
    """Seconds of a process until it prints the time and until it ends, and what it prints."""
    start = time.time()
    done = subprocess.run([sys.executable, "-c", *arguments], check=True, capture_output=True, text=True)
    end, said = time.time(), done.stdout.split()
    return (float(said[0]) - start, end - start), said


if __name__ == "__main__":
    main()
