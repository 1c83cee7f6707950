"""Ways from decision values to probabilities, by class weights: on the ten digits and on HAM10000.

    python benchmarks/calibration.py ham10000.h5 --table docs/results/calibration.md

Needs the store of examples/ham10000.py. Each way is fitted on the out-of-fold decision values of four folds and judged
on those of the fifth, in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sklearn.datasets import load_digits

import deepfeat
from deepfeat.svm.calibration import METHODS

METRICS = ("accuracy", "brier", "calibration_error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--backbone", default="EfficientNetLite0")
    parser.add_argument("--table", type=Path, help="write the table here instead of printing it")
    arguments = parser.parse_args()
    rows = []
    for name, data, given in tasks(arguments):
        for weight in ("balanced", None):
            for method in METHODS:
                result = deepfeat.fit_svm(data, test=None, class_weight=weight, calibrate=method, **given)
                chances = result.predictions.filter(like="probability ")
                confidence = chances.to_numpy().max(axis=1).mean()
                likeliest = chances.idxmax(axis=1).str.removeprefix("probability ")
                agree = (likeliest == result.predictions["predicted"]).mean()
                scores = " | ".join(f"{result.metrics.value[metric]:.3f}" for metric in METRICS)
                rows.append(f"| {name} | {weight} | {method} | {scores} | {confidence:.3f} | {agree:.1%} |")
                print(rows[-1], flush=True)
    text = "\n".join(report(rows, arguments))
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    else:
        print(text)


def tasks(arguments: argparse.Namespace) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, data and further arguments of fit_svm."""
    pixels, digits = load_digits(return_X_y=True)
    yield "ten digits", (pixels.astype("float32"), digits.astype(str)), {"param_grid": {"C": [0.01]}}
    store = deepfeat.open_features(arguments.cache)
    data = store.features(arguments.backbone), *(store.table[name].to_numpy() for name in ("label", "group"))
    for name, positive in (("HAM10000, eight classes", None), ("HAM10000, MEL against the rest", "MEL")):
        yield name, data, {"param_grid": {"C": [1e-4]}, "positive": positive}


def report(rows: list[str], arguments: argparse.Namespace) -> list[str]:
    return [
        "# From decision values to probabilities",
        "",
        f"Made by `python benchmarks/calibration.py ham10000.h5 --table {arguments.table}` from the store of "
        f"examples/ham10000.py ({arguments.backbone}): LinearSVC at C = 1e-4, for the digits 0.01, five folds, those "
        "of HAM10000 grouped by lesion; pooled out-of-fold predictions. Accuracy is of the labels, which do not depend "
        "on the calibration. Confidence is the mean of each image's greatest probability, and the last column the part "
        "of the images whose label it belongs to.",
        "",
        "| data | class_weight | calibrate | accuracy | brier | calibration_error | confidence | label is likeliest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
    ]


if __name__ == "__main__":
    main()
