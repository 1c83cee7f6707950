"""Model selection: deepfeat.fit_svm against scikit-learn's GridSearchCV, on real and synthetic features.

    python benchmarks/svm.py ham10000.h5 --work FOLDER
    python benchmarks/svm.py ham10000.h5 --work FOLDER --table docs/results/svm.md --plot docs/results/svm.png

ham10000.h5 is a feature store of HAM10000 with three networks, labels and lesions. Every run is an interpreter of its
own, on as many cores as it says, and leaves a JSON file in FOLDER; what is there is not run again. --section and
--only choose runs (--list shows them), and --table puts together those that are there.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import resource
import subprocess
import sys
import time
import timeit
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from joblib.externals.loky import get_reusable_executor
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, ParameterGrid
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

import deepfeat
from deepfeat.splits import make_folds, merge_groups
from deepfeat.svm import resources
from deepfeat.svm.cholesky import Factor

SIZES, WIDTH, FOLDS, SEED = (1000, 2500, 10000), 2048, 5, 0
COSTS = [10.0**power for power in range(-6, 2)]
GAMMAS = [factor / WIDTH for factor in (0.1, 0.3, 1.0)]
GRIDS: dict[str, dict[str, list[float]]] = {
    "LinearSVC": {"C": COSTS},
    "SVC-linear": {"C": COSTS},
    "SVC-rbf": {"C": [0.1, 1.0, 10.0, 100.0], "gamma": GAMMAS},
}
#: Where scikit-learn runs the whole grid, on one core and on two. Elsewhere it runs single cells.
WHOLE = [("LinearSVC", 1000)]
#: Cells of the others: values of C, values of gamma, and folds.
SAMPLES: dict[tuple[str, int], tuple[list[float], list[float], list[int]]] = {
    ("LinearSVC", 2500): (COSTS, [], [0]),
    # C = 0.01 takes liblinear three minutes a fold already; larger ones were not tried to the end.
    ("LinearSVC", 10000): (COSTS[:5], [], [0]),
    ("SVC-linear", 1000): (COSTS, [], [0, 1]),
    ("SVC-rbf", 1000): (GRIDS["SVC-rbf"]["C"], GAMMAS, [0, 1]),
    ("SVC-linear", 2500): (COSTS, [], [0]),
    ("SVC-rbf", 2500): (GRIDS["SVC-rbf"]["C"], GAMMAS, [0]),
    ("SVC-linear", 10000): (COSTS, [], [0]),
    ("SVC-rbf", 10000): (GRIDS["SVC-rbf"]["C"], GAMMAS[1:2], [0]),
}
HAM_SAMPLE = [1e-6, 1e-5, 1e-4, 1e-2]
#: Columns of HAM10000's three networks, and seconds of a Cholesky factor of so many on the processor for which the
#: goals in seconds were set.
WIDEST, GOALS_FACTOR = 3072, 0.035
#: Images of each class of ISIC 2019, and the width of three networks joined.
ISIC2019 = {"NV": 12875, "MEL": 4522, "BCC": 3323, "BKL": 2624, "AK": 867, "SCC": 628, "VASC": 253, "DF": 239}
ISIC2019_WIDTH, ISIC2019_COSTS, ISIC2019_FOLDS = 4352, [1e-5, 1e-4, 1e-3], 3
#: Least images of a class that are drawn, so that each has groups enough for the folds.
LEAST = 10

Data = tuple[np.ndarray, np.ndarray, np.ndarray]
Run = tuple[int, Callable[[str], dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="feature store of HAM10000, three networks")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs' results")
    parser.add_argument("--section", choices=("sizes", "ham10000", "isic2019"), help="these runs alone")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names of runs, such as '*-2500-*'")
    parser.add_argument("--list", action="store_true", help="print the names of the runs chosen, and stop")
    parser.add_argument("--table", type=Path, help="write the table of all runs done here, and run nothing")
    parser.add_argument("--plot", type=Path, help="and the plot here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    runs = all_runs()
    if arguments.one:
        run_here(arguments.one, runs, arguments.store, arguments.work)
        return
    if arguments.table:
        write_report(arguments)
        return
    for name in runs:
        if not name.startswith(arguments.section or "") or not any(fnmatch.fnmatch(name, p) for p in arguments.only):
            continue
        if arguments.list:
            print(name)
        elif not (arguments.work / f"{name}.json").exists():
            run_apart(name, runs[name][0], arguments)


def all_runs() -> dict[str, Run]:
    """Every run by its name: cores, and what to do with the store."""
    runs: dict[str, Run] = {}
    for n in SIZES:
        for kind in GRIDS:
            for cores in (1, 2):
                runs[f"sizes-{kind}-{n}-deepfeat-{cores}"] = cores, partial(run_deepfeat, kind, n, cores)
                if (kind, n) in WHOLE:
                    runs[f"sizes-{kind}-{n}-sklearn-{cores}"] = cores, partial(run_sklearn, kind, n, cores)
            costs, gammas, folds = SAMPLES.get((kind, n), ([], [], []))
            for C in costs:
                grid = {"C": [C]} | ({"gamma": gammas} if gammas else {})
                runs[f"sizes-{kind}-{n}-cells-C{C:g}"] = 1, partial(run_cells, kind, n, grid, folds)
    runs["sizes-LinearSVC-1000-cached-1"] = 1, partial(run_cached, "LinearSVC", 1000)
    for n in SIZES[:2]:
        runs[f"sizes-LinearSVC-{n}-halving-1"] = 1, partial(run_halving, "LinearSVC", n)
    later = [{"class_weight": None}, {"backbones": ["EfficientNetLite0", "MobileNetV2"]}]
    for task, positive, fits in (("eight", None, [{}]), ("MEL", "MEL", [{}, *later])):
        runs[f"ham10000-{task}-deepfeat"] = 2, partial(run_store, positive, 2, fits)
        for C in HAM_SAMPLE:
            runs[f"ham10000-{task}-cells-C{C:g}"] = 1, partial(run_store_cells, positive, C)
    runs["ham10000-MEL-subsets"] = 2, partial(run_store, "MEL", 2, [{"backbones": "all-subsets"}])
    runs["ham10000-machine"] = 2, run_machine
    runs["isic2019-deepfeat"] = 2, run_isic2019
    return runs


def run_apart(name: str, cores: int, arguments: argparse.Namespace) -> None:
    threads = {f"{library}_NUM_THREADS": str(cores) for library in ("OMP", "OPENBLAS", "MKL")}
    command = [sys.executable, __file__, arguments.store, "--work", str(arguments.work), "--one", name]
    start = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | threads)
    print(f"{name}: {time.perf_counter() - start:.0f} s with its start", flush=True)


def run_here(name: str, runs: dict[str, Run], store: str, work: Path) -> None:
    cores, action = runs[name]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(cores))
    with warnings.catch_warnings():
        # liblinear's steps are counted for each cell instead.
        warnings.simplefilter("ignore", ConvergenceWarning)
        start, before = time.perf_counter(), busy_seconds()
        outcome = action(store)
        outcome["others"] = (busy_seconds() - before) / (time.perf_counter() - start)
    outcome.setdefault("peak_memory", peak_memory())
    (work / f"{name}.json").write_text(json.dumps(outcome, default=float), encoding="utf-8")
    print({key: value for key, value in outcome.items() if not isinstance(value, list | dict)}, flush=True)


def busy_seconds() -> float:
    """Processor seconds that other processes than this one and its children have had; 0 where the system hides it."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return 0.0
    user, nice, system, _, _, *rest = map(int, statistics.read_text(encoding="ascii").split("\n")[0].split()[1:])
    everything = (user + nice + system + sum(rest[:2])) / os.sysconf("SC_CLK_TCK")
    return everything - sum(os.times()[:4])


def peak_memory() -> float:
    """Bytes that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# Features


def draw(store: str, n: int) -> Data:
    """Draw rows and columns of HAM10000's joined blocks: of each class its share, but LEAST at least."""
    features = deepfeat.open_features(store)
    table, rng = features.table, np.random.default_rng(SEED)
    X = np.concatenate([features.features(key) for key in features.blocks["key"]], axis=1)
    columns = np.sort(rng.choice(X.shape[1], WIDTH, replace=False))
    labels = table["label"].to_numpy(str)
    names, counts = np.unique(labels, return_counts=True)
    wanted = np.minimum(np.maximum((counts * n / len(labels)).astype(int), LEAST), counts)
    wanted[counts.argmax()] += n - wanted.sum()
    parts = zip(names, wanted, strict=True)
    rows = np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == name))[:w] for name, w in parts]))
    return X[np.ix_(rows, columns)], labels[rows], table["group"].to_numpy(str)[rows]


def synthetic_isic2019() -> tuple[np.ndarray, np.ndarray]:
    """Classes that overlap, in features whose spectrum decays as that of pooled features does."""
    rng = np.random.default_rng(SEED)
    y = rng.permutation(np.repeat(list(ISIC2019), list(ISIC2019.values())))
    spectrum = (1 / np.sqrt(1 + np.arange(ISIC2019_WIDTH))).astype(np.float32)
    X = rng.standard_normal((len(y), ISIC2019_WIDTH), np.float32)
    for name in ISIC2019:
        X[y == name] += 0.25 * rng.standard_normal(ISIC2019_WIDTH, np.float32) * (np.arange(ISIC2019_WIDTH) < 300)
    X *= spectrum
    turn = np.linalg.qr(rng.standard_normal((ISIC2019_WIDTH, ISIC2019_WIDTH), np.float32))[0]
    return X @ turn, y


def cross_validation(y: np.ndarray, groups: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return make_folds(y, merge_groups(groups.tolist()), FOLDS, SEED)


# Runs


def run_deepfeat(kind: str, n: int, cores: int, store: str) -> dict[str, Any]:
    X, y, groups = draw(store, n)
    options = {"LinearSVC": {}, "SVC-linear": {"classifier": "SVC"}, "SVC-rbf": {"kernel": "rbf"}}[kind]
    folds = cross_validation(y, groups)
    return fit((X, y, groups), cv=folds, param_grid=GRIDS[kind], test=None, n_jobs=cores, **options)


def fit(features: Any, **options: Any) -> dict[str, Any]:
    # Imports are in neither time.
    fit_svm = deepfeat.fit_svm
    start = time.perf_counter()
    result = fit_svm(features, **options)
    seconds = time.perf_counter() - start
    table, out = result.cv_results, result.predictions
    names = [name for name in ("C", "gamma") if name in table]
    folds = [column for column in table if column.startswith("fold")]
    return {
        "seconds": seconds,
        "engine": result.engine,
        "best": str(result.best_params),
        "params": {name: result.best_params[name] for name in names},
        "score": float(table["mean"].max()),
        "scores": [
            {"params": {k: float(row[k]) for k in names}, "folds": [float(row[f]) for f in folds], "gap": row["gap"]}
            for _, row in table.iterrows()
        ],
        "unconverged": int((~table["converged"]).sum()),
        "predicted": out["predicted"].astype(str).tolist(),
        "fold": out["fold"].astype(int).tolist(),
        "notes": result.warnings,
        "subsets": [] if result.subsets is None else result.subsets.astype({"best_params": str}).values.tolist(),
    }


def make_reference(kind: str) -> Pipeline:
    svm: Any = LinearSVC(dual="auto", class_weight="balanced", random_state=SEED)
    if kind != "LinearSVC":
        svm = SVC(kernel=kind.removeprefix("SVC-"), class_weight="balanced", cache_size=1000)
    return Pipeline([("scale", StandardScaler()), ("svm", svm)])


def with_prefix(grid: dict[str, list[float]]) -> dict[str, list[float]]:
    return {f"svm__{name}": values for name, values in grid.items()}


class Recorder:
    """Balanced accuracy, as scikit-learn's own scorer, that keeps what was predicted; in one process alone."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[str], bool]] = []

    def __call__(self, estimator: Pipeline, X: np.ndarray, y: np.ndarray) -> float:
        """Score an estimator."""
        predicted = estimator.predict(X)
        svm = estimator[-1]
        stopped = bool(svm.fit_status_) if isinstance(svm, SVC) else bool(svm.n_iter_ >= svm.max_iter)
        self.seen.append((predicted.astype(str).tolist(), stopped))
        return balanced_accuracy_score(y, predicted)


def list_cells(search: GridSearchCV, folds: Sequence[int], recorder: Recorder | None = None) -> list[dict[str, Any]]:
    """The cells of a grid: parameters, fold, seconds, score, predictions, and whether the solver was stopped."""
    results, cells = search.cv_results_, []
    seconds = results["mean_fit_time"] + results["mean_score_time"]
    for place, params in enumerate(results["params"]):
        for column, fold in enumerate(folds):
            cell = {"params": {name.removeprefix("svm__"): value for name, value in params.items()}, "fold": fold}
            cell |= {"seconds": seconds[place], "score": results[f"split{column}_test_score"][place]}
            if recorder:
                cell["predicted"], cell["stopped"] = recorder.seen[place * len(folds) + column]
            cells.append(cell)
    return cells


def run_sklearn(kind: str, n: int, cores: int, store: str) -> dict[str, Any]:
    X, y, groups = draw(store, n)
    recorder = Recorder() if cores == 1 else None
    search = GridSearchCV(
        make_reference(kind),
        with_prefix(GRIDS[kind]),
        scoring=recorder or "balanced_accuracy",
        cv=cross_validation(y, groups),
        n_jobs=cores,
    )
    start = time.perf_counter()
    search.fit(X, y)
    seconds = time.perf_counter() - start
    # Only processes that have ended are known to be this one's.
    get_reusable_executor().shutdown(wait=True)
    return {"seconds": seconds, "cells": list_cells(search, range(FOLDS), recorder)}


def run_cells(kind: str, n: int, grid: dict[str, list[float]], some: list[int], store: str) -> dict[str, Any]:
    X, y, groups = draw(store, n)
    folds = cross_validation(y, groups)
    return {"cells": time_cells(make_reference(kind), X, y, grid, folds, some)}


def time_cells(
    pipeline: Pipeline, X: np.ndarray, y: np.ndarray, grid: dict[str, list[float]], folds: list[Any], some: list[int]
) -> list[dict[str, Any]]:
    recorder = Recorder()
    cv = [folds[fold] for fold in some]
    search = GridSearchCV(pipeline, with_prefix(grid), scoring=recorder, cv=cv, n_jobs=1, refit=False)
    return list_cells(search.fit(X, y), some, recorder)


def run_cached(kind: str, n: int, store: str) -> dict[str, Any]:
    """Scale the rows of each fold once for all candidates, with plain loops; the same cells otherwise."""
    X, y, groups = draw(store, n)
    svm, scores = make_reference(kind)[-1], []
    start = time.perf_counter()
    for train, test in cross_validation(y, groups):
        scaler = StandardScaler().fit(X[train])
        rows, others = scaler.transform(X[train]), scaler.transform(X[test])
        fits = [sklearn.clone(svm).set_params(**params).fit(rows, y[train]) for params in ParameterGrid(GRIDS[kind])]
        scores.append([balanced_accuracy_score(y[test], fitted.predict(others)) for fitted in fits])
    best = ParameterGrid(GRIDS[kind])[int(np.mean(scores, axis=0).argmax())]
    make_reference(kind).set_params(**{f"svm__{name}": value for name, value in best.items()}).fit(X, y)
    return {"seconds": time.perf_counter() - start, "params": best}


def run_halving(kind: str, n: int, store: str) -> dict[str, Any]:
    X, y, groups = draw(store, n)
    search = HalvingGridSearchCV(
        make_reference(kind),
        with_prefix(GRIDS[kind]),
        scoring="balanced_accuracy",
        cv=cross_validation(y, groups),
        random_state=SEED,
        n_jobs=1,
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        # Small subsets lack some classes.
        warnings.simplefilter("ignore", UserWarning)
        search.fit(X, y)
    params = {name.removeprefix("svm__"): value for name, value in search.best_params_.items()}
    return {"seconds": time.perf_counter() - start, "params": params}


def run_store(positive: str | None, n_jobs: int | None, fits: list[dict[str, Any]], store: str) -> dict[str, Any]:
    """Fits one after the other in one process, and the products that each computed."""
    outcomes, memory = [], 0.0
    for options in fits:
        before = resources._PRODUCTS.computed
        found = fit(store, positive=positive, param_grid={"C": COSTS}, test=None, n_jobs=n_jobs, **options)
        found |= {"options": str(options), "computed": resources._PRODUCTS.computed - before}
        print(f"{options}: {found['seconds']:.1f} s, {found['computed']} products, {found['best']}", flush=True)
        memory = memory or peak_memory()
        outcomes.append(found)
    return outcomes[0] | {"later": outcomes[1:], "peak_memory": memory}


def run_store_cells(positive: str | None, C: float, store: str) -> dict[str, Any]:
    features = deepfeat.open_features(store)
    X = np.concatenate([features.features(key) for key in features.blocks["key"]], axis=1)
    labels = features.table["label"].to_numpy(str)
    sets = merge_groups(features.table["group"].tolist())
    y = labels if positive is None else np.where(labels == positive, positive, f"not {positive}")
    folds = make_folds(y, sets, FOLDS, SEED)
    return {"cells": time_cells(make_reference("LinearSVC"), X, y, {"C": [C]}, folds, [0])}


def run_machine(store: str) -> dict[str, Any]:
    """Seconds of what the engine does most, at HAM10000's size: a float32 Cholesky factor."""
    rows = np.random.default_rng(SEED).standard_normal((2 * WIDEST, WIDEST), np.float32)
    matrix = rows.T @ rows
    return {"factor": min(timeit.repeat(lambda: Factor(matrix.copy()), number=1, repeat=10))}


def run_isic2019(store: str) -> dict[str, Any]:
    X, y = synthetic_isic2019()
    return fit((X, y), param_grid={"C": ISIC2019_COSTS}, cv=ISIC2019_FOLDS, test=None, n_jobs=2)


# The report


class Reference:
    """What scikit-learn took and found: the whole grid, or some cells of it."""

    def __init__(self, done: dict[str, Any], kind: str, n: int) -> None:
        self._kind, self._one = kind, done.get(f"sizes-{kind}-{n}-sklearn-1")
        self._two = done.get(f"sizes-{kind}-{n}-sklearn-2")
        samples = [run for name, run in done.items() if name.startswith(f"sizes-{kind}-{n}-cells-")]
        runs = [self._one] if self._one else samples
        self.cells = [cell for run in runs for cell in run["cells"]]
        self.memory = max((run["peak_memory"] for run in runs), default=float("nan"))
        self.costs = sorted({cell["params"]["C"] for cell in self.cells})

    def seconds(self, cores: int) -> float:
        """Seconds of the grid, as far as its values of C were run, and of the final fit."""
        if cores == 2:
            return self._two["seconds"] if self._two else self.seconds(1) / 2
        if self._one:
            return self._one["seconds"]
        per_cost = FOLDS * len(GRIDS[self._kind].get("gamma", [0]))
        grid = sum(per_cost * mean_seconds(c for c in self.cells if c["params"]["C"] == C) for C in self.costs)
        best = max(self.scores(), key=lambda pair: pair[1])[0]
        final = mean_seconds(cell for cell in self.cells if cell["params"] == best)
        return grid + final * FOLDS / (FOLDS - 1)

    def scores(self) -> list[tuple[dict[str, float], float]]:
        """Each candidate and its mean score over the folds that were run."""
        by_params: dict[str, list[float]] = {}
        for cell in self.cells:
            by_params.setdefault(json.dumps(cell["params"]), []).append(cell["score"])
        return [(json.loads(params), float(np.mean(scores))) for params, scores in by_params.items()]

    def is_measured(self, cores: int) -> bool:
        """Whether the whole grid was run."""
        return (self._one if cores == 1 else self._two) is not None

    def describe(self) -> str:
        """Say what was run."""
        if self._one:
            return "all cells"
        folds = sorted({cell["fold"] for cell in self.cells})
        gammas = {cell["params"].get("gamma") for cell in self.cells}
        shown = f"fold {', '.join(map(str, folds))} of C = {', '.join(f'{C:g}' for C in self.costs)}"
        return shown + ("" if None in gammas else f", {len(gammas)} of {len(GAMMAS)} gamma")


def mean_seconds(cells: Iterable[dict[str, Any]]) -> float:
    return float(np.mean([cell["seconds"] for cell in cells]))


def same_params(one: dict[str, float], other: dict[str, float]) -> bool:
    return all(np.isclose(one[name], other[name], rtol=1e-9) for name in one)


def compare(found: dict[str, Any], cells: list[dict[str, Any]]) -> tuple[float, int, int, int]:
    """Largest difference of a fold's score, how many predictions differ of how many, and cells stopped unconverged."""
    differences, differ, count = [], 0, 0
    fold_of, predicted = np.array(found["fold"]), np.array(found["predicted"])
    for cell in cells:
        row = next(row for row in found["scores"] if same_params(cell["params"], row["params"]))
        differences.append(abs(row["folds"][cell["fold"]] - cell["score"]))
        if same_params(cell["params"], found["params"]):
            differ += int((predicted[fold_of == cell["fold"]] != cell["predicted"]).sum())
            count += len(cell["predicted"])
    return max(differences), differ, count, sum(cell["stopped"] for cell in cells)


def best_of(scores: Iterable[tuple[dict[str, float], float]]) -> str:
    params = max(scores, key=lambda pair: pair[1])[0]
    return ", ".join(f"{name} = {value:.3g}" for name, value in params.items())


def scores_like(found: dict[str, Any], reference: Reference) -> list[tuple[dict[str, float], float]]:
    """Mean scores by deepfeat of the candidates and folds that scikit-learn ran."""
    scores = []
    for params, _ in reference.scores():
        row = next(row for row in found["scores"] if same_params(params, row["params"]))
        folds = [cell["fold"] for cell in reference.cells if cell["params"] == params]
        scores.append((params, float(np.mean([row["folds"][fold] for fold in folds]))))
    return scores


GOALS = {
    ("LinearSVC", 1000): 20, ("LinearSVC", 2500): 12, ("LinearSVC", 10000): 12,
    ("SVC-linear", 2500): 20, ("SVC-linear", 10000): 20, ("SVC-rbf", 2500): 40, ("SVC-rbf", 10000): 40,
}  # fmt: skip


def list_times(done: dict[str, Any], kind: str, n: int) -> list[str]:
    reference, lines = Reference(done, kind, n), []
    for cores in (1, 2):
        found = done.get(f"sizes-{kind}-{n}-deepfeat-{cores}")
        if found and reference.cells:
            ours, theirs = found["seconds"], reference.seconds(cores)
            sign = "" if reference.is_measured(cores) else "~"
            sign += "> " if len(reference.costs) < len(GRIDS[kind]["C"]) else ""
            goal = f"{GOALS[kind, n]}" if (kind, n) in GOALS else ""
            memory = f"{found['peak_memory'] / 1e9:.1f} / {reference.memory / 1e9:.1f}" if cores == 1 else ""
            lines.append(
                f"| {kind.replace('-', ' ')} | {n:,} | {cores} | {ours:.1f} | {sign}{theirs:,.0f} "
                f"| {sign}{theirs / ours:.1f} | {goal} | {memory} |"
            )
    return lines


def list_agreement(done: dict[str, Any], kind: str, n: int) -> list[str]:
    reference, found = Reference(done, kind, n), done.get(f"sizes-{kind}-{n}-deepfeat-1")
    if not found or not reference.cells:
        return []
    difference, differ, count, stopped = compare(found, reference.cells)
    ours, theirs = best_of(scores_like(found, reference)), best_of(reference.scores())
    return [
        f"| {kind.replace('-', ' ')} | {n:,} | {ours} | {theirs} | {mean_difference(found, reference):.4f} "
        f"| {difference:.4f} | {differ} of {count:,} "
        f"| {found['unconverged']} of {len(found['scores'])} | {stopped} of {len(reference.cells)} |"
    ]


def report_sizes(done: dict[str, Any], plot: str | None) -> list[str]:
    cases = [(kind, n) for kind in GRIDS for n in SIZES]
    samples = {case: Reference(done, *case) for case in cases}
    shown = [f"{kind.replace('-', ' ')} at {n:,}: {r.describe()}" for (kind, n), r in samples.items() if r.cells]
    return [
        "## Eight classes, five folds, against the number of images",
        "",
        f"HAM10000's features, those of its networks joined, of which {WIDTH:,} columns are drawn, and images of all "
        f"classes, {LEAST} of each at least; folds grouped by lesion. LinearSVC and SVC linear: eight values of C "
        "from 1e-6 to 10. SVC rbf: four values of C from 0.1 to 100, and gamma of 0.1, 0.3 and 1 over the number of "
        "columns. A process on one core, and one on two (n_jobs=2).",
        "",
        *([f"![Seconds against the number of images]({plot})", ""] if plot else []),
        "| classifier | images | cores | deepfeat, s | scikit-learn, s | ratio | goal | peak memory, GB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(line for case in cases for line in list_times(done, *case)),
        "",
        "~ is an estimate, since scikit-learn would run for long: the mean time of the cells that were run at a value "
        "of C, fit and score, times the number of cells with that C, and the final fit as 5/4 of a fold's. Two cores "
        "are taken to halve it, which favours scikit-learn. > where some values of C were not run, and their time "
        "is left out. The cells that were run are, counting folds from 0: " + "; ".join(shown) + ".",
        "",
        "Peak memory is that of the whole process on one core, deepfeat / scikit-learn, features included.",
        "",
        "| classifier | images | best, deepfeat | best, scikit-learn | difference of mean scores | of a fold's "
        "| predictions that differ | not converged, deepfeat | not converged, scikit-learn |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(line for case in cases for line in list_agreement(done, *case)),
        "",
        "The best parameters and the largest differences of balanced accuracy are over the cells that scikit-learn "
        "ran; predictions are the out-of-fold ones at the parameters that deepfeat chose. What did not converge is "
        "counted in candidates of all folds for deepfeat, and in the cells that were run for scikit-learn.",
        "",
        *report_variants(done),
    ]


def mean_difference(found: dict[str, Any], reference: Reference) -> float:
    pairs = zip(scores_like(found, reference), reference.scores(), strict=True)
    return max(abs(ours[1] - theirs[1]) for ours, theirs in pairs)


def report_variants(done: dict[str, Any]) -> list[str]:
    ways = {"deepfeat": "deepfeat", "cached": "loops, rows scaled once a fold", "halving": "HalvingGridSearchCV"}
    lines = []
    for n in SIZES:
        reference = Reference(done, "LinearSVC", n)
        found = {way: done.get(f"sizes-LinearSVC-{n}-{way}-1") for way in ways}
        if not reference.cells or not (found["cached"] or found["halving"]):
            continue
        whole, sign = reference.seconds(1), "" if reference.is_measured(1) else "~"
        lines.append(f"| {n:,} | GridSearchCV | {sign}{whole:.1f} | 1.0 | {best_of(reference.scores())} |")
        for way, run in found.items():
            if run:
                ratio = f"{sign}{whole / run['seconds']:.1f}"
                lines.append(f"| {n:,} | {ways[way]} | {run['seconds']:.1f} | {ratio} | C = {run['params']['C']:.3g} |")
    return [
        "Other ways to LinearSVC's choice, on one core; HalvingGridSearchCV drops candidates by their scores on few "
        "images, and may choose others than the whole grid does:",
        "",
        "| images | way | seconds | ratio | chosen |",
        "| --- | --- | --- | --- | --- |",
        *lines,
        "",
    ]


def report_ham10000(done: dict[str, Any]) -> list[str]:
    lines, reused, goals = [], [], {"eight": "120 (aim 60)", "MEL": "20"}
    for task in goals:
        found = done.get(f"ham10000-{task}-deepfeat")
        if not found:
            continue
        runs = [run for name, run in done.items() if name.startswith(f"ham10000-{task}-cells-")]
        cells = sorted((cell for run in runs for cell in run["cells"]), key=lambda cell: cell["params"]["C"])
        per_cost = ", ".join(f"{FOLDS * c['seconds']:,.0f} (C = {c['params']['C']:g})" for c in cells)
        agreement = "not run | "
        if cells:
            difference, differ, count, _ = compare(found, cells)
            agreement = f"{difference:.4f} | {differ} of {count:,}"
        name = "eight classes" if task == "eight" else "MEL against the rest"
        lines.append(
            f"| {name} | {found['seconds']:.1f} | {goals[task]} | {found['params']['C']:g} | {found['score']:.4f} "
            f"| {found['peak_memory'] / 1e9:.1f} | {per_cost} | {agreement} |"
        )
        if found["later"]:
            reused += [f"| {name} | the first | {found['seconds']:.1f} | {found['computed']} |"]
            reused += [f"| {name} | {r['options']} | {r['seconds']:.1f} | {r['computed']} |" for r in found["later"]]
    if not lines:
        return []
    subsets, one = done.get("ham10000-MEL-subsets"), done.get("ham10000-MEL-deepfeat")
    return [
        "## HAM10000: 10,015 images, 3,072 columns, eight values of C from 1e-6 to 10, two cores",
        "",
        "LinearSVC, five folds grouped by lesion, from the store to the fitted pipeline. scikit-learn's time is of one "
        "core for five folds at one value of C, five times that of fold 0.",
        "",
        "| task | deepfeat, s | goal, s | C | balanced accuracy | peak memory, GB | scikit-learn, s "
        "| difference of scores | predictions that differ |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *lines,
        "",
        *describe_machine(done),
        *([describe_subsets(subsets, one), ""] if subsets and one else [""]),
        "Fits one after the other in one process, and the products of columns that each had to compute:",
        "",
        "| task | fit | seconds | products computed |",
        "| --- | --- | --- | --- |",
        *reused,
        "",
    ]


def describe_machine(done: dict[str, Any]) -> list[str]:
    machine = done.get("ham10000-machine")
    if not machine:
        return []
    return [
        f"A float32 Cholesky factor of {WIDEST:,} x {WIDEST:,} takes this machine {machine['factor']:.3f} s on two "
        f"cores, and {GOALS_FACTOR:.3f} s the one for which the goals in seconds were set.",
        "",
    ]


def describe_subsets(subsets: dict[str, Any], one: dict[str, Any]) -> str:
    best = subsets["subsets"][0]
    return (
        f"All {len(subsets['subsets'])} subsets of the networks, MEL, take {subsets['seconds']:.1f} s, "
        f"{subsets['seconds'] / one['seconds']:.1f} times the time of the three joined (goal: 4); "
        f"the best is {best[0]}, with a balanced accuracy of {best[1]:.4f} in cross-validation."
    )


def report_isic2019(done: dict[str, Any]) -> list[str]:
    found = done.get("isic2019-deepfeat")
    if not found:
        return []
    shown = ", ".join(f"{C:g}" for C in ISIC2019_COSTS)
    return [
        "## The size of ISIC 2019",
        "",
        f"{sum(ISIC2019.values()):,} x {ISIC2019_WIDTH:,} synthetic features in float32 with the frequencies of its "
        f"eight classes, C of {shown}, {ISIC2019_FOLDS} folds, two cores: {found['seconds']:.0f} s, and at most "
        f"{found['peak_memory'] / 1e9:.1f} GB for the whole process (goal: 12). Chosen: {found['best']}, with a "
        f"balanced accuracy of {found['score']:.4f}; {found['unconverged']} candidates did not converge.",
        "",
    ]


def report_others(done: dict[str, Any]) -> list[str]:
    """Name the runs whose times others have lengthened."""
    disturbed = [f"{name} ({run['others']:.1f})" for name, run in done.items() if run["others"] > 0.1]
    if not disturbed:
        return []
    return ["Other processes took more than a tenth of a core during " + ", ".join(disturbed) + ".", ""]


def draw_plot(done: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, len(GRIDS), sharex=True, sharey=True)
    for axis, kind in zip(axes, GRIDS, strict=True):
        sizes = [n for n in SIZES if f"sizes-{kind}-{n}-deepfeat-1" in done and Reference(done, kind, n).cells]
        for name, colour, seconds in (
            ("scikit-learn", "tab:orange", [Reference(done, kind, n).seconds(1) for n in sizes]),
            ("deepfeat", "tab:blue", [done[f"sizes-{kind}-{n}-deepfeat-1"]["seconds"] for n in sizes]),
        ):
            axis.loglog(sizes, seconds, "o-", color=colour, label=name)
        axis.set(title=kind.replace("-", " "), xlabel="images", xticks=SIZES, xticklabels=[f"{n:,}" for n in SIZES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds on one core")
    axes[0].legend()
    figure.savefig(path, dpi=120)


def write_report(arguments: argparse.Namespace) -> None:
    done = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(arguments.work.glob("*.json"))}
    lines = [
        "# Choosing parameters: deepfeat and scikit-learn",
        "",
        "Made by `python benchmarks/svm.py ham10000.h5 --work FOLDER` and the same with `--table docs/results/svm.md "
        f"--plot docs/results/svm.png`: {os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}, NumPy {np.__version__}, scikit-learn {sklearn.__version__}. The reference is "
        "GridSearchCV(Pipeline(StandardScaler, LinearSVC or SVC)) on the same rows, folds and grid, with "
        "class_weight='balanced' and all else at its default (1,000 iterations at most), but LinearSVC(dual='auto') "
        "and a cache of 1 GB for SVC. The final fit on all rows is part of every time.",
        "",
        *report_sizes(done, arguments.plot.name if arguments.plot else None),
        *report_ham10000(done),
        *report_isic2019(done),
        *report_others(done),
    ]
    arguments.table.write_text("\n".join(lines), encoding="utf-8")
    if arguments.plot:
        draw_plot(done, arguments.plot)


if __name__ == "__main__":
    main()
