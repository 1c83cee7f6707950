"""What float16 storage does to the classifier: the same fits on features as stored and rounded to float16.

    python benchmarks/float16.py ham10000.h5 --table docs/results/float16.md

Needs the store of examples/ham10000.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import deepfeat

GRID = {"C": [1e-4]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--table", type=Path, help="write the table here instead of printing it")
    arguments = parser.parse_args()
    store = deepfeat.open_features(arguments.cache)
    labels, groups = (store.table[name].to_numpy() for name in ("label", "group"))
    rows = []
    for name in store.blocks["name"]:
        exact = store.features(name)
        rounded = exact.astype(np.float16).astype(np.float32)
        worst = float(np.abs(exact - rounded).max() / np.abs(exact).max())
        for positive in (None, "MEL"):
            fits = [
                deepfeat.fit_svm(
                    (X, labels, groups), positive=positive, param_grid=GRID, test=None, n_jobs=arguments.jobs
                )
                for X in (exact, rounded)
            ]
            scores = [fit.metrics.value["balanced_accuracy"] for fit in fits]
            agree = (fits[0].predictions["predicted"] == fits[1].predictions["predicted"]).mean()
            task = positive or "8 classes"
            rows.append(f"| {name} | {task} | {scores[0]:.4f} | {scores[1]:.4f} | {agree:.4%} | {worst:.1e} |")
            print(rows[-1], flush=True)
    lines = [
        "# float16 storage",
        "",
        "Made by `python benchmarks/float16.py ham10000.h5 --table docs/results/float16.md` from the store of "
        "examples/ham10000.py: LinearSVC at C = 1e-4, five folds grouped by lesion, balanced accuracy of the pooled "
        "out-of-fold predictions. The last column is the largest rounding error relative to the largest feature.",
        "",
        "| features | task | float32 | float16 | equal predictions | largest error |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        "float16 takes half the space. It is a block of its own: the two never mix.",
        "",
    ]
    text = "\n".join(lines)
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
