"""Convolutions of 3 x 3 under OpenVINO in float32: by the definition, and by Winograd's algorithm.

    python benchmarks/winograd.py --table docs/results/winograd.md

Layers: each row is a network of two such convolutions between two of 1 x 1, all with their activation; random
weights, two images in a request, one stream of as many threads as there are cores. Networks: whole ones, as
`deepfeat.extract` runs them, with random weights on random pixels. Both ways take turns.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import openvino as ov
from openvino import opset8 as ops

import deepfeat
from deepfeat.runtimes import openvino as runtime
from deepfeat.runtimes import winograd
from deepfeat.runtimes.keras import KerasRuntime

#: Channels in and out, and side of the map; networks in which it occurs.
LAYERS = {
    (64, 64, 224): "VGG16",
    (64, 64, 56): "ResNet50",
    (128, 128, 112): "VGG16",
    (128, 128, 28): "ResNet50",
    (96, 96, 35): "InceptionV3",
    (256, 256, 56): "VGG16",
    (256, 256, 14): "ResNet50",
    (512, 512, 28): "VGG16",
    (512, 512, 14): "VGG16",
    (512, 512, 7): "ResNet50",
    (384, 384, 8): "InceptionV3",
}
IMAGES = 2

#: Whole networks, and images of one measurement.
NETWORKS = {"VGG16": 16, "VGG19": 16, "ResNet50": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--table", type=Path, help="write the table here instead of printing it")
    arguments = parser.parse_args()
    layers = [measure_layer(*layer, arguments.rounds, used_in) for layer, used_in in LAYERS.items()]
    networks = [measure_network(name, arguments.rounds) for name in NETWORKS]
    text = "\n".join([*head(arguments.rounds), *layers, "", *HEAD_OF_NETWORKS, *networks, ""])
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    print(text)


HEAD_OF_NETWORKS = [
    "Whole networks. The differences are from Keras, relative to the largest feature; a start opens the conversion "
    "that is kept.",
    "",
    "| network | convolutions replaced | definition, images/s | Winograd, images/s | ratio | difference, definition "
    "| difference, Winograd | start, definition | start, Winograd |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
]


def head(rounds: int) -> list[str]:
    return [
        "# Winograd's algorithm for convolutions of 3 x 3",
        "",
        f"Made by `python benchmarks/winograd.py --table docs/results/winograd.md`: float32, {os.cpu_count()} cores, "
        f"{platform.machine()}, OpenVINO {ov.__version__.split('-')[0]}, median of {rounds} rounds in which both ways "
        "take turns. Two convolutions of 3 x 3 between two of 1 x 1; the time of the latter alone is taken off. The "
        "difference is the largest, relative to the largest value. deepfeat takes Winograd's algorithm for maps from "
        f"{winograd.SIDE} x {winograd.SIDE} on where n_in n_out / (n_in + n_out) is at least {winograd.CHANNELS}.",
        "",
        "| n_in, n_out | map | as in | n_in n_out / (n_in + n_out) | definition, ms/image | Winograd, ms/image | ratio "
        "| difference | taken |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]


def measure_layer(n_in: int, n_out: int, side: int, rounds: int, used_in: str) -> str:
    images = np.random.default_rng(1).random((IMAGES, n_in, side, side), np.float32)
    networks = [make_network(n_in, n_out, side, count) for count in (0, 2, 2, 2)]
    taken_as = "Winograd" if winograd.rewrite_convolutions(networks.pop()) else "definition"
    with mock.patch.multiple(winograd, CHANNELS=0, SIDE=1):
        assert winograd.rewrite_convolutions(networks[-1]) == 2
    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1"}
    compiled = [ov.Core().compile_model(network, "CPU", settings) for network in networks]
    between, definition, fast = (1e3 * seconds / IMAGES for seconds in take_turns(compiled, images, rounds))
    difference = relative(compiled[2](images)[0], compiled[1](images)[0])
    channels = n_in * n_out / (n_in + n_out)
    row = (
        f"| {n_in}, {n_out} | {side} x {side} | {used_in} | {channels:.0f} | {definition - between:.1f} "
        f"| {fast - between:.1f} | {(definition - between) / (fast - between):.2f} | {difference:.0e} | {taken_as} |"
    )
    print(row, flush=True)
    return row


def measure_network(name: str, rounds: int) -> str:
    backbone = deepfeat.Backbone(name, weights=None)
    model = backbone.build()
    images = np.random.default_rng(0).integers(0, 256, (NETWORKS[name], *backbone.input_shape), np.uint8)
    open_network(backbone, model, fast=False)  # converts it, where no conversion is kept
    opened = [open_network(backbone, model, fast=fast) for fast in (False, True)]
    expected = KerasRuntime(backbone, model, 4)(images)[0]
    runs = [run for run, _, _ in opened]
    rates = [len(images) / seconds for seconds in take_turns(runs, images, rounds)]
    off = [relative(run(images)[0], expected) for run in runs]
    row = (
        f"| {name} | {opened[1][1]} | {rates[0]:.2f} | {rates[1]:.2f} | {rates[1] / rates[0]:.2f} "
        f"| {off[0]:.0e} | {off[1]:.0e} | {opened[0][2]:.2f} s | {opened[1][2]:.2f} s |"
    )
    print(row, flush=True)
    return row


def take_turns(runs: Sequence[Callable[[np.ndarray], object]], images: np.ndarray, rounds: int) -> list[float]:
    """Median of the seconds of each, after a first round that warms up."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 1):
        for run, taken in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run(images)
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:]) for taken in seconds]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def open_network(
    backbone: deepfeat.Backbone, model: object, *, fast: bool
) -> tuple[runtime.OpenVinoRuntime, int, float]:
    """A network, the number of convolutions that were replaced in it, and the seconds that it took to open."""
    counts: list[int] = []

    def rewrite(network: ov.Model) -> None:
        counts.append(winograd.rewrite_convolutions(network) if fast else 0)

    with mock.patch.object(runtime, "rewrite_convolutions", rewrite):
        start = time.perf_counter()
        opened = runtime.open_runtime(backbone, f"random:{backbone.seed}", lambda: model, "float32")
        return opened, counts[-1], time.perf_counter() - start


def make_network(n_in: int, n_out: int, side: int, count: int) -> ov.Model:
    rng = np.random.default_rng(0)
    given = ops.parameter([-1, n_in, side, side], np.float32)
    maps = convolve(given, rng, n_in, n_in, 1)
    for _ in range(count):
        maps = convolve(maps, rng, n_in, n_out, 3)
    return ov.Model([convolve(maps, rng, n_out, n_in, 1)], [given], "convolutions")


def convolve(maps: ov.Node, rng: np.random.Generator, n_in: int, n_out: int, side: int) -> ov.Node:
    filters = rng.standard_normal((n_out, n_in, side, side), np.float32) / np.float32(np.sqrt(n_in * side**2 / 2))
    pad = [side // 2, side // 2]
    return ops.relu(ops.convolution(maps, ops.constant(filters), [1, 1], pad, pad, [1, 1]))


if __name__ == "__main__":
    main()
