"""A million rows of features in float16, fitted within the memory of an ordinary machine.

    python benchmarks/rows.py --work FOLDER --table docs/results/rows.md

Writes a store of synthetic features with the class frequencies of ISIC 2019, two images to a lesion, and fits it in
processes of their own, whose peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

import deepfeat
from deepfeat.store import RECORD, StoreWriter
from deepfeat.store.layout import DONE
from deepfeat.svm import experiment, procedure

#: Share of each class in ISIC 2019's training images.
CLASSES = {
    "NV": 0.508,
    "MEL": 0.178,
    "BCC": 0.131,
    "BKL": 0.104,
    "AK": 0.034,
    "SCC": 0.025,
    "VASC": 0.010,
    "DF": 0.010,
}
COSTS = [1e-7, 1e-6, 1e-5, 1e-4]
SPEC = {"backbone": "Synthetic", "weights": "none", "layer": None, "pooling": "avg", "dtype": "float16"}
WIDTH, RANK, BATCH = 1280, 64, 10_000


def write_store(path: Path, n_rows: int) -> None:
    """Write features that share a few directions, are 0 for a part, and differ a little between the classes."""
    rng = np.random.default_rng(0)
    label = np.repeat(rng.choice(len(CLASSES), n_rows // 2, p=np.array([*CLASSES.values()]) / sum(CLASSES.values())), 2)
    ids = [f"image{i:08d}" for i in range(n_rows)]
    groups = [f"lesion{i // 2:08d}" for i in range(n_rows)]
    table = pd.DataFrame(
        {"image_id": ids, "path": ids, "label": np.array([*CLASSES])[label], "group": groups, "split": None}
    )
    directions = rng.normal(size=(RANK, WIDTH)) * (np.arange(1, RANK + 1) ** -0.5)[:, None]
    centres = 0.15 * rng.normal(size=(len(CLASSES), WIDTH))
    records = np.zeros(BATCH, RECORD)
    records["state"] = DONE
    with StoreWriter(path) as writer:
        writer.add_images(table)
        block = writer.add_block(SPEC, (WIDTH,), {})
        for start in range(0, n_rows, BATCH):
            lesion = rng.normal(size=(BATCH // 2, RANK)).repeat(2, axis=0) + 0.3 * rng.normal(size=(BATCH, RANK))
            X = lesion @ directions + centres[label[start : start + BATCH]] + rng.normal(size=(BATCH, WIDTH)) + 0.5
            rows = np.arange(start, start + BATCH)
            records["digest"][:, :8] = rows.astype("<u8")[:, None].view(np.uint8)
            writer.write(block, rows, np.maximum(X, 0).astype(np.float32), records)


def fit(path: Path, positive: str | None, max_memory: float) -> dict[str, object]:
    """Fit in this process, and tell how long it took and how much memory."""
    spent = {}

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            found = function(*arguments, **options)
            spent[function.__name__] = time.perf_counter() - start
            return found

        return run

    parts = [(experiment, "load_samples"), (experiment, "make_folds"), (procedure, "shared_search")]
    for module, name in [*parts, (experiment, "evaluate_predictions")]:
        setattr(module, name, timed(getattr(module, name)))
    options = {"positive": positive, "test": None, "param_grid": {"C": COSTS}, "max_memory": max_memory}
    result = timed(deepfeat.fit_svm)(path, ledger=False, **options)
    return {
        "seconds": spent.pop("fit_svm"),
        "spent": spent,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "engine": result.engine,
        "C": result.best_params["C"],
        "score": result.metrics["value"]["balanced_accuracy"],
        "converged": bool(result.cv_results["converged"].all()),
        "gap": float(result.cv_results["gap"].max()),
    }


def main() -> None:
    """Write the store where it is not there yet, fit, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--max-memory", type=float, default=8e9)
    parser.add_argument("--fit", choices=["MEL", "eight"])
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    path = arguments.work / f"rows{arguments.rows}.h5"
    if arguments.fit:
        print(json.dumps(fit(path, "MEL" if arguments.fit == "MEL" else None, arguments.max_memory)))
        return
    if not path.exists():
        write_store(path, arguments.rows)
    lines = []
    for task, name in (("MEL", "MEL against the rest"), ("eight", "eight classes")):
        command = [sys.executable, __file__, "--rows", str(arguments.rows), "--work", str(arguments.work)]
        command += ["--max-memory", str(arguments.max_memory), "--fit", task]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        lines.append(
            f"| {name} | {found['engine']} | {found['seconds']:.0f} | "
            f"{' | '.join(format(seconds, '.0f') for seconds in found['spent'].values())} "
            f"| {found['peak'] / 1e9:.1f} | {found['C']:g} "
            f"| {found['score']:.4f} | {found['gap']:.1e} |"
        )
        print(lines[-1], flush=True)
    text = [
        "# Very many rows",
        "",
        f"Made by `python benchmarks/rows.py --work FOLDER --table {arguments.table}`: a store of {arguments.rows:,} x "
        f"{WIDTH:,} synthetic features in float16 ({path.stat().st_size / 1e9:.1f} GB), two images to a lesion, the "
        f"class frequencies of ISIC 2019; {len(COSTS)} values of C from {COSTS[0]:g} to {COSTS[-1]:g}, five folds "
        f"grouped by lesion, metrics with intervals; `max_memory={arguments.max_memory:g}`. {joblib.cpu_count()} "
        f"cores, {platform.machine()}, Python {platform.python_version()}.",
        "",
        "| task | engine | seconds | of which reading | folds | search and fit | metrics | peak memory of process, GB "
        "| C | balanced accuracy | largest duality gap |",
        "|" + " --- |" * 11,
        *lines,
        "",
    ]
    if arguments.table:
        arguments.table.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
