"""Both stages on HAM10000: two frozen networks, eight classes and melanoma against the rest.

Needs a folder with ``images/`` and ``labels.csv`` (columns image, label, lesion_id) and a file of
MobileNetV2 weights, or none to let Keras download them:

    python examples/ham10000.py DATA --mobilenet WEIGHTS --cache ham10000.h5 --table docs/results/ham10000.md

The folds are the five of scikit-learn's StratifiedGroupKFold on the lesion ("grouped") or StratifiedKFold
("random"), shuffled with random state 0; metrics are computed once on the pooled out-of-fold predictions.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np

import deepfeat

LITE, MOBILE = "EfficientNetLite0", "MobileNetV2"
GRID = {"C": [1e-5, 1e-4, 1e-3]}
REFERENCE_C = {"C": [1e-4]}
COMMANDS = """\
    deepfeat extract DATA/images --csv DATA/labels.csv --group-column lesion_id \\
        --backbone EfficientNetLite0 --backbone MobileNetV2=WEIGHTS --cache ham10000.h5
    deepfeat fit ham10000.h5 --C 1e-5 1e-4 1e-3
    deepfeat fit ham10000.h5 --C 1e-5 1e-4 1e-3 --positive MEL"""


def extract_features(data: Path, cache: Path, mobilenet: str) -> tuple[deepfeat.FeatureStore, list[dict]]:
    """Run both networks twice; the second run finds everything done."""
    table = deepfeat.read_csv(data / "labels.csv", data / "images", group="lesion_id")
    rows = []
    for backbone in (deepfeat.Backbone(LITE), deepfeat.Backbone(MOBILE, weights=mobilenet)):
        for run in ("first", "second"):
            start = time.perf_counter()
            store = deepfeat.extract(table, backbone, cache)
            seconds = time.perf_counter() - start
            rows.append({"backbone": backbone.name, "run": run, "images": len(table), "seconds": f"{seconds:.2f}"})
    start = time.perf_counter()
    _ = deepfeat.open_features(cache).table
    rows.append(
        {
            "backbone": "open_features(cache).table",
            "run": "",
            "images": "",
            "seconds": f"{time.perf_counter() - start:.4f}",
        }
    )
    return store, rows


def experiments(store: deepfeat.FeatureStore, jobs: int) -> list[dict]:
    """Fit every combination of features, task, split and grid."""
    labels = store.table.label.to_numpy()
    rows = []
    for blocks in ([LITE], [MOBILE], [LITE, MOBILE]):
        for positive in (None, "MEL"):
            for split, grid in (("grouped", GRID), ("grouped", REFERENCE_C), ("random", REFERENCE_C)):
                options = {"positive": positive, "param_grid": grid, "test": None, "n_jobs": jobs}
                start = time.perf_counter()
                if split == "grouped":
                    result = deepfeat.fit_svm(store, backbones=blocks, **options)
                else:
                    matrix = np.hstack([store.features(block) for block in blocks])
                    result = deepfeat.fit_svm((matrix, labels), **options)
                rows.append(describe(result, blocks, positive, split, grid, time.perf_counter() - start))
                print(rows[-1], flush=True)
    return rows


def protocols(store: deepfeat.FeatureStore, jobs: int) -> list[dict]:
    """Naive split and score against lesions kept whole and a nested estimate, with intervals."""
    labels = store.table.label.to_numpy()
    images = (np.hstack([store.features(block) for block in (LITE, MOBILE)]), labels)
    rows = []
    for positive in (None, "MEL"):
        options = {"positive": positive, "param_grid": GRID, "test": None, "n_jobs": jobs}
        naive = deepfeat.fit_svm(images, **options)
        nested = deepfeat.fit_svm(store, backbones=[LITE, MOBILE], nested=True, **options)
        estimates = {
            "images at random, best of the grid": naive.metrics,
            "lesions whole, best of the grid": nested.nested[["plain"]].rename(columns={"plain": "value"}),
            "lesions whole, nested": nested.metrics,
        }
        for protocol, metrics in estimates.items():
            row = {"task": positive or "8 classes", "protocol": protocol}
            names = (
                "accuracy",
                "balanced_accuracy",
                "f1" if positive else "f1_macro",
                "auroc" if positive else "auroc_macro",
            )
            rows.append(row | {name.removesuffix("_macro"): with_interval(metrics.loc[name]) for name in names})
            print(rows[-1], flush=True)
    return rows


def with_interval(metric) -> str:
    shown = f"{metric['value']:.3f}"
    return f"{shown} ({metric['low']:.3f} to {metric['high']:.3f})" if "low" in metric else shown


def describe(result, blocks, positive, split, grid, seconds) -> dict:
    values = result.metrics["value"]
    names = ["accuracy", "balanced_accuracy", "f1_macro"]
    if positive:
        names = ["accuracy", "balanced_accuracy", "precision", "recall", "f1", "auroc"]
    searched = "searched" if len(grid["C"]) > 1 else "fixed"
    row = {"task": positive or "8 classes", "features": " + ".join(blocks), "split": split}
    row |= {"C": f"{result.best_params['C']:g} ({searched})"}
    row |= {name: f"{values[name]:.3f}" for name in names}
    if not positive:
        row["auroc of MEL"] = f"{result.per_class.auroc['MEL']:.3f}"
    return row | {"seconds": f"{seconds:.0f}"}


def markdown(rows: list[dict]) -> str:
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    return "\n".join(lines + ["| " + " | ".join(str(row[name]) for name in header) + " |" for row in rows])


def report(extraction: list[dict], fits: list[dict], estimates: list[dict]) -> str:
    multi = [row for row in fits if row["task"] == "8 classes"]
    melanoma = [row for row in fits if row["task"] != "8 classes"]
    machine = f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python {platform.python_version()}"
    return "\n\n".join(
        [
            "# HAM10000 with two frozen networks",
            "Made by `python examples/ham10000.py DATA --mobilenet WEIGHTS --table docs/results/ham10000.md`. "
            "HAM10000 (Tschandl et al. 2018, doi 10.1038/sdata.2018.161) has 10,015 dermoscopic "
            "images of 7,470 lesions, here with the eight classes of ISIC 2019 and downsized to 200 x 150 pixels. "
            "MobileNetV2's ImageNet weights were quantised to 8 bits and restored. "
            f"Measured on {machine}.",
            "The same on the command line:",
            COMMANDS,
            "## Extraction",
            markdown(extraction),
            "## Eight classes",
            "Out-of-fold predictions of five folds, pooled. *grouped* keeps the images of a lesion in one fold; "
            "*random* does not, and flatters every row. A searched C was chosen by balanced accuracy "
            "on the same folds.",
            markdown(multi),
            "## Melanoma against the rest",
            markdown(melanoma),
            "## Naive against nested",
            "Both networks joined. With 95 % intervals: of images drawn one by one in the naive protocol, of whole "
            "lesions in the nested one. *nested* chooses C again on the training part of each fold, so that no image "
            "that is scored had a say in it. F1 and AUROC are means over the classes, or those of melanoma.",
            markdown(estimates),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with images/ and labels.csv")
    parser.add_argument("--mobilenet", default="imagenet", help="file of weights (default: Keras' download)")
    parser.add_argument("--cache", type=Path, default=Path("ham10000.h5"))
    parser.add_argument("--table", type=Path, help="write the report here instead of printing it")
    parser.add_argument("--jobs", type=int, default=-1, help="fits at a time (default: one per core)")
    arguments = parser.parse_args()
    store, extraction = extract_features(arguments.data, arguments.cache, arguments.mobilenet)
    text = report(extraction, experiments(store, arguments.jobs), protocols(store, arguments.jobs))
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
