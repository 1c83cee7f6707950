"""Do the intervals cover, and is chance called chance? Simulated data on which no classifier can be better than 0.5.

    python benchmarks/coverage.py --table docs/results/coverage.md

Each repeat draws lesions with random features and a random class; each lesion has several images, which are the
lesion's features with a little noise. Three protocols are scored on the same data: images split as if each were a
lesion of its own, lesions kept whole, and lesions kept whole with the nested estimate. An interval covers if 0.5 is in
it.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

import deepfeat

GRID = {"C": [1e-4, 1e-3, 1e-2, 1e-1, 1.0]}
METRICS = ("accuracy", "balanced_accuracy", "auroc_macro")


def draw(seed: int, n_lesions: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, classes and lesions of images: one to five of each lesion."""
    rng = np.random.default_rng(seed)
    lesion = np.repeat(np.arange(n_lesions), rng.integers(1, 6, n_lesions))
    label = rng.permutation(np.arange(n_lesions) % 2)[lesion]
    X = rng.normal(size=(n_lesions, dim))[lesion] + 0.3 * rng.normal(size=(len(lesion), dim))
    return X, np.array(["benign", "malignant"])[label], lesion


def repeat(seed: int, n_lesions: int, dim: int) -> list[dict]:
    """Score one data set by each protocol."""
    X, y, lesion = draw(seed, n_lesions, dim)
    images, lesions = (X, y), (X, y, lesion)
    options = {"test": None, "param_grid": GRID, "class_weight": [None, "balanced"], "seed": seed}
    fits = {
        "images split at random": deepfeat.fit_svm(images, **options),
        "lesions whole": deepfeat.fit_svm(lesions, **options),
        "lesions whole, nested": deepfeat.fit_svm(lesions, nested=True, **options),
    }
    rows = []
    for protocol, result in fits.items():
        for metric in METRICS:
            value, low, high = result.metrics.loc[metric, ["value", "low", "high"]]
            rows.append({"protocol": protocol, "metric": metric, "value": value, "low": low, "high": high})
        best = result.cv_results["mean"].max() if result.nested is None else np.nan
        rows.append({"protocol": protocol, "metric": "best score of the grid", "value": best})
    return rows


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean, its standard error, and how many intervals hold 0.5."""
    rows["covers"] = (rows["low"] <= 0.5) & (rows["high"] >= 0.5)
    rows["width"] = rows["high"] - rows["low"]
    groups = rows.groupby(["metric", "protocol"], sort=False)
    table = groups["value"].agg(["mean", "sem"])
    table["covers"], table["width"] = groups["covers"].mean(), groups["width"].mean()
    return table.reset_index().dropna(subset="mean").sort_values("metric", key=lambda m: m.map(_order), kind="stable")


def _order(metric: str) -> int:
    return [*METRICS, "best score of the grid"].index(metric)


def as_markdown(table: pd.DataFrame) -> str:
    """Format the summary."""
    lines = ["| metric | protocol | mean | intervals that hold 0.5 | mean width |", "| --- | --- | --- | --- | --- |"]
    for row in table.itertuples():
        covers = "–" if np.isnan(row.width) else f"{row.covers:.1%}"
        width = "–" if np.isnan(row.width) else f"{row.width:.3f}"
        lines.append(f"| {row.metric} | {row.protocol} | {row.mean:.3f} ± {row.sem:.3f} | {covers} | {width} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all repeats and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--lesions", type=int, default=100)
    parser.add_argument("--dim", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    found = Parallel(n_jobs=arguments.jobs)(
        delayed(repeat)(seed, arguments.lesions, arguments.dim) for seed in range(arguments.repeats)
    )
    table = as_markdown(summarise(pd.DataFrame([row for rows in found for row in rows])))
    seconds = time.perf_counter() - started
    text = (
        f"# Coverage on data without a signal\n\nMade by `python benchmarks/coverage.py --table {arguments.table}`: "
        f"{arguments.repeats} repeats, {arguments.lesions} lesions of one to five images, {arguments.dim} features; "
        f"{seconds:.0f} s, {platform.machine()}, Python {platform.python_version()}. The truth is 0.5 in every row.\n\n"
    )
    print(text + table)
    if arguments.table:
        arguments.table.write_text(text + table, encoding="utf-8")


if __name__ == "__main__":
    main()
