"""Networks on a GPU: deepfeat under Keras against torchvision and timm, eager and compiled.

    KERAS_BACKEND=jax python benchmarks/gpu.py --table docs/results/gpu.md

Random weights and images that are in memory already. Ways take turns, and the median of the rounds counts.
Needs torch, torchvision and timm beside the backend of Keras; without a GPU it runs on the CPU and says so.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

# PyTorch and its compiler first: loaded after TensorFlow, which Keras needs, the compiler's library crashes.
import torch
import torch._inductor.compile_fx

# isort: split
import keras
import numpy as np

import deepfeat
from deepfeat.benchmarking import count_macs
from deepfeat.runtimes.keras import KerasRuntime, count_gpus

NETWORKS = {
    "MobileNetV2": "torchvision mobilenet_v2",
    "EfficientNetLite0": "timm tf_efficientnet_lite0",
    "ResNet50": "torchvision resnet50",
    "VGG16": "torchvision vgg16",
}
PRODUCT_EDGE = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--table", type=Path, help="write the table here instead of printing it")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {platform.machine()}"
    peak = matrix_peak(device, 1 if device == "cuda" else 4)
    lines = [
        "# Networks on a GPU",
        "",
        f"Made by `KERAS_BACKEND={keras.backend.backend()} python benchmarks/gpu.py --batch-size {arguments.batch_size}"
        f" --batches {arguments.batches}` on {name}; Keras {keras.__version__} on {keras.backend.backend()} "
        f"sees {count_gpus()} GPU(s); torch {torch.__version__}. bfloat16 everywhere. Images per second, in brackets "
        f"the part of the measured matrix product's {peak / 1e12:.1f} TFLOP/s.",
        *([] if device == "cuda" else ["", "No GPU was available: this only shows that the script runs."]),
        "",
        "| network | deepfeat | torch eager | torch compiled, channels last |",
        "| --- | --- | --- | --- |",
    ]
    for network in arguments.networks:
        macs, ways = open_ways(network, arguments.batch_size, device)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for way in ways.values():
            way()
        for _ in range(arguments.rounds):
            for way, run in ways.items():
                start = time.perf_counter()
                for _ in range(arguments.batches):
                    run()
                seconds[way].append(time.perf_counter() - start)
        count = arguments.batches * arguments.batch_size
        rates = [count / statistics.median(values) for values in seconds.values()]
        lines.append(f"| {network} | {' | '.join(f'{r:.1f} ({2 * macs * r / peak:.0%})' for r in rates)} |")
        print(lines[-1], flush=True)
    text = "\n".join([*lines, ""])
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    else:
        print(text)


def matrix_peak(device: str, shrink: int) -> float:
    """Floating-point operations per second of the best of five bfloat16 matrix products."""
    edge = PRODUCT_EDGE // shrink
    a = torch.randn(edge, edge, dtype=torch.bfloat16, device=device)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * edge**3 / min(seconds[1:])


def open_ways(network: str, size: int, device: str) -> tuple[int, dict[str, Callable[[], object]]]:
    """Multiply-accumulates of one image, and functions that run one batch from memory to features in memory."""
    backbone = deepfeat.Backbone(network, weights=None)
    model = backbone.build()
    runtime = KerasRuntime(backbone, model, size, "bfloat16")
    images = np.random.default_rng(0).integers(0, 256, (size, *backbone.input_shape), np.uint8)
    eager = torch_network(network).to(device)
    compiled = torch.compile(torch_network(network).to(device, memory_format=torch.channels_last))

    def run(torch_model: torch.nn.Module) -> np.ndarray:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            return torch_model(x).float().cpu().numpy()

    return count_macs(model), {
        "deepfeat": lambda: runtime(images),
        "torch eager": lambda: run(eager),
        "torch compiled": lambda: run(compiled),
    }


def torch_network(network: str) -> torch.nn.Module:
    """The network in PyTorch, with average pooling instead of its classifier."""
    import timm
    import torchvision

    library, name = NETWORKS[network].split()
    if library == "timm":
        return timm.create_model(name, num_classes=0).eval()
    whole = torchvision.models.get_model(name, weights=None)
    maps = whole.features if hasattr(whole, "features") else torch.nn.Sequential(*list(whole.children())[:-2])
    return torch.nn.Sequential(maps, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()


if __name__ == "__main__":
    main()
