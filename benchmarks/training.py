"""How many images a second networks learn from, with all layers and with the last of them.

    python benchmarks/training.py --mobilenet WEIGHTS --table docs/results/training.md

Steps of 32 random images with one process; the least time of some steps after the first counts. Reading and
augmenting images is not part of it: threads do that meanwhile.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np

import deepfeat
from deepfeat.runtimes.keras import keras
from deepfeat.training.classifier import build_classifier, build_trainer, set_trainable
from deepfeat.training.epochs import compile_trainer
from deepfeat.training.settings import Settings

BATCH = 32
CLASSES = 8
EPOCH = 8000
SIZES = (96, 224)
SCRATCH = ("AlexNet", "AlexNetOneTower", "DeepCNN", "DeepCNNGrouped", "DeepCNNMultiSize")
COLUMNS = ("pixels", "network", "layers that learn", "images a second", "ratio", f"s for {EPOCH:,} images")


def images_per_second(name: str, weights: str | None, size: int, unfreeze: float, steps: int) -> float:
    backbone = deepfeat.Backbone(name, weights=weights, input_size=size)
    classifier = build_classifier(backbone, CLASSES, None, 0.3, 0)
    trainer, network = build_trainer(backbone, classifier, "float32")
    set_trainable(network, unfreeze, False, weights is not None)
    compile_trainer(trainer, network, 1e-4, Settings(), EPOCH)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), np.uint8)
    batch = images, np.eye(CLASSES, dtype=np.float32)[np.arange(BATCH) % CLASSES], np.ones(BATCH, np.float32)
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        trainer.train_on_batch(*batch)
        times.append(time.perf_counter() - start)
    return BATCH / min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mobilenet", default="imagenet", help="file of weights (default: Keras' download)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--table", type=Path, help="write the table here instead of printing it")
    arguments = parser.parse_args()
    mobile, lite = ("MobileNetV2", arguments.mobilenet), ("EfficientNetLite0", "imagenet")
    cases = [(*mobile, 1.0), (*mobile, 0.3), (*lite, 1.0), (*lite, 0.3), *((name, None, 1.0) for name in SCRATCH)]
    lines = ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
    for size in SIZES:
        base = 0.0
        for name, weights, unfreeze in cases:
            speed = images_per_second(name, weights, size, unfreeze, arguments.steps)
            base = base or speed
            part = "all" if unfreeze == 1 else f"the last {unfreeze:.0%}"
            lines.append(f"| {size} | {name} | {part} | {speed:.0f} | {speed / base:.2f} | {EPOCH / speed:.0f} |")
            print(lines[-1], flush=True)
    machine = f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Keras on {keras.backend.backend()}"
    command = "python benchmarks/training.py --mobilenet WEIGHTS --table docs/results/training.md"
    title = f"# Speed of training\n\nMade by `{command}` on {machine}, float32, batches of {BATCH}."
    text = "\n".join([title, "", *lines, ""])
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
