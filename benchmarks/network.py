"""Networks alone under OpenVINO in float32, against the machine's matrix products, and by the size of a request.

    python benchmarks/network.py --table docs/results/network.md

Random weights, images in memory. Matrix products and networks take turns, so that a slow minute of the machine
hits all of them; a fraction is of the products of the same round.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops

import deepfeat
from deepfeat.benchmarking import count_macs, measure_peak
from deepfeat.runtimes import openvino as runtime

#: Networks, and images of one measurement.
NETWORKS = {"ResNet50": 32, "InceptionV3": 24, "VGG16": 16, "MobileNetV2": 128}
REQUESTS = (1, 2, 4, 8)
EDGE = 3072


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", type=Path, help="write the table here instead of printing it")
    arguments = parser.parse_args()
    opened = {name: open_network(name) for name in NETWORKS}
    multiply = open_product()
    peaks: dict[str, list[float]] = {"NumPy": [], "OpenVINO": []}
    rates: dict[tuple[str, int], list[float]] = {(name, size): [] for name in NETWORKS for size in REQUESTS}
    for number in range(arguments.rounds + 1):
        peaks["NumPy"].append(measure_peak() / 1e9)
        peaks["OpenVINO"].append(2 * EDGE**3 / seconds(multiply, 3) / 1e9)
        for (name, size), measured in rates.items():
            run, images, _ = opened[name]
            runtime.REQUEST = size
            measured.append(len(images) / seconds(lambda run=run, images=images: run(images), 1))
        if number == 0:  # the first round warms up
            for values in (*peaks.values(), *rates.values()):
                values.clear()
    text = "\n".join(report(opened, peaks, rates, arguments.rounds))
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    print(text)


def report(
    opened: dict[str, tuple], peaks: dict[str, list[float]], rates: dict[tuple[str, int], list[float]], rounds: int
) -> list[str]:
    usual = 2
    lines = [
        "# Networks against the machine's matrix products",
        "",
        f"Made by `python benchmarks/network.py --table docs/results/network.md`: float32, {os.cpu_count()} cores, "
        f"{platform.machine()}, OpenVINO {ov.__version__.split('-')[0]}, NumPy {np.__version__}, median of {rounds} "
        "rounds. Products of square matrices reach "
        + " and ".join(f"{statistics.median(values):.0f} GFLOP/s in {name}" for name, values in peaks.items())
        + f" (edges 2,048 and {EDGE:,}); a fraction is twice the multiply-accumulates by the images per second, "
        "over the products of the same round.",
        "",
        f"| network | MACs, 10⁹ | images/s | of NumPy's product | of OpenVINO's | {REQUESTS[0]} image a request "
        f"| {' | '.join(map(str, REQUESTS[1:]))} |",
        f"| --- |{' --- |' * (4 + len(REQUESTS))}",
    ]
    for name, (_, _, macs) in opened.items():
        own = rates[name, usual]
        parts = [
            statistics.median(2 * macs * rate / 1e9 / peak for rate, peak in zip(own, values, strict=True))
            for values in peaks.values()
        ]
        by_request = [f"{statistics.median(rates[name, size]):.1f}" for size in REQUESTS]
        lines.append(
            f"| {name} | {macs / 1e9:.2f} | {statistics.median(own):.1f} | {parts[0]:.0%} | {parts[1]:.0%} "
            f"| {' | '.join(by_request)} |"
        )
    return [*lines, ""]


def open_network(name: str) -> tuple[Callable[[np.ndarray], object], np.ndarray, int]:
    backbone = deepfeat.Backbone(name, weights=None)
    model = backbone.build()
    run = runtime.open_runtime(backbone, f"random:{backbone.seed}", lambda: model, "float32")
    images = np.random.default_rng(0).integers(0, 256, (NETWORKS[name], *backbone.input_shape), np.uint8)
    return run, images, count_macs(model)


def open_product() -> Callable[[], object]:
    """A product of two square matrices in OpenVINO, one of them constant, as in a network."""
    a = np.random.default_rng(0).standard_normal((EDGE, EDGE), np.float32)
    given = ops.parameter(a.shape, np.float32)
    model = ov.Model([ops.matmul(given, ops.constant(a), False, False)], [given], "product")
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda: compiled(a)


def seconds(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


if __name__ == "__main__":
    main()
