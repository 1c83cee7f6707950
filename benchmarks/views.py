"""What views and bfloat16 do to the classifier, on HAM10000, melanoma against the rest.

    python benchmarks/views.py IMAGES LABELS.csv --weights mobilenet_v2_notop.weights.h5 --table docs/results/views.md

IMAGES is the folder of HAM10000's pictures and LABELS.csv has the columns image, label and lesion_id.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import deepfeat

VIEWS = ["original", "hflip", "vflip"]
FIT = {"positive": "MEL", "param_grid": {"C": [1e-4]}, "test": None}
METRICS = ("balanced_accuracy", "auroc", "average_precision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--weights", default="imagenet", help="of MobileNetV2: a file (default: Keras' download)")
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--table", type=Path, help="write the table here instead of printing it")
    arguments = parser.parse_args()
    table = deepfeat.read_csv(arguments.labels, arguments.images, group="lesion_id")
    backbone = deepfeat.Backbone("MobileNetV2", weights=arguments.weights)
    with tempfile.TemporaryDirectory() as folder:
        exact, short = Path(folder, "float32.h5"), Path(folder, "bfloat16.h5")
        start = time.perf_counter()
        deepfeat.extract(table, backbone, exact, views=VIEWS, runtime="openvino", precision="float32")
        middle = time.perf_counter()
        deepfeat.extract(table, backbone, short, runtime="openvino", precision="bfloat16")
        print(f"extracted in {middle - start:.0f} s and {time.perf_counter() - middle:.0f} s", flush=True)
        rules = (None, "average", "augment", "vote")
        fits = {str(rule or "the image itself"): fit(exact, rule, arguments.jobs) for rule in rules}
        fits["the image itself, bfloat16"] = fit(short, None, arguments.jobs)
        distance = cosine_distance(exact, short)
    base, other = fits["the image itself"], fits["the image itself, bfloat16"]
    agree = (base.predictions["predicted"] == other.predictions["predicted"]).mean()
    lines = [
        "# Views, and bfloat16",
        "",
        "Made by `python benchmarks/views.py IMAGES LABELS.csv --weights mobilenet_v2_notop.weights.h5 --table "
        f"docs/results/views.md`: MobileNetV2 on {len(table):,} images of HAM10000, views {', '.join(VIEWS)}, "
        "LinearSVC at C = 1e-4, melanoma against the rest, five folds grouped by lesion, out-of-fold predictions.",
        "",
        "| views | balanced accuracy | AUROC | average precision |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | {' | '.join(f'{r.metrics.value[m]:.4f}' for m in METRICS)} |" for name, r in fits.items()),
        "",
        f"Between float32 and bfloat16, 1 - cosine of an image's embeddings is {np.median(distance):.1e} in the median "
        f"and {distance.max():.1e} at most; {agree:.2%} of the predictions are equal.",
        "",
    ]
    text = "\n".join(lines)
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    print(text)


def fit(cache: Path, views: str | None, jobs: int) -> deepfeat.SVMResult:
    start = time.perf_counter()
    result = deepfeat.fit_svm(cache, views=views, n_jobs=jobs, **FIT)
    print(f"{views}: {time.perf_counter() - start:.0f} s, {result}", flush=True)
    return result


def cosine_distance(first: Path, second: Path) -> np.ndarray:
    """1 - cosine between the embeddings of each image."""
    a, b = (deepfeat.open_features(path).features("MobileNetV2").astype(float) for path in (first, second))
    return 1 - (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


if __name__ == "__main__":
    main()
