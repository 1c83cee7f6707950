"""Candidates times folds: one pipeline, one grid, one result table."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import check_scoring
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.parallel import Parallel, delayed

from deepfeat.errors import UsageError
from deepfeat.evaluation import class_scores
from deepfeat.fusion import AlignedAverage, BlockAverage, LateFusionClassifier, ViewsClassifier
from deepfeat.splits import Fold

PARAMETERS = {"linear": ("C",), "rbf": ("C", "gamma")}
LOSSES = ("squared_hinge", "hinge")


def make_pipeline(
    kernel: str, loss: str, fusion: str, widths: Sequence[int], seed: int, n_views: int = 1, views: str | None = None
) -> Pipeline:
    """Build the unfitted classifier: views, fusion of the blocks, scaling, SVM.

    Returns
    -------
    sklearn.pipeline.Pipeline
        It takes the blocks side by side, (n, n_views * sum of widths).
    """
    single = _single_view_pipeline(kernel, loss, fusion, widths, seed)
    if n_views == 1:
        return single
    if views == "average":
        return Pipeline([("views", BlockAverage([sum(widths)] * n_views)), *single.steps])
    return Pipeline([("views", ViewsClassifier(single, n_views, str(views)))])


def _single_view_pipeline(kernel: str, loss: str, fusion: str, widths: Sequence[int], seed: int) -> Pipeline:
    if kernel == "linear":
        svm = LinearSVC(loss=loss, dual="auto", random_state=seed)
    else:
        svm = SVC(kernel="rbf", decision_function_shape="ovr", cache_size=1000)
    steps: list[tuple[str, Any]] = [("scale", StandardScaler()), ("svm", svm)]
    if len(widths) > 1:
        if fusion == "late":
            return Pipeline([("late", LateFusionClassifier(Pipeline(steps), list(widths)))])
        if fusion == "average":
            steps.insert(0, ("average", BlockAverage(list(widths))))
        if fusion == "aligned":
            # It scales as a whole: one by one, the last principal components would grow to the size of the first.
            steps[0] = ("aligned", AlignedAverage(list(widths)))
    return Pipeline(steps)


def svm_prefix(pipeline: Pipeline) -> str:
    """Where the parameters of the SVM are found in the pipeline."""
    last = pipeline.steps[-1]
    if last[0] in ("late", "views"):
        return f"{last[0]}__estimator__{svm_prefix(last[1].estimator)}"
    return "svm__"


def make_grid(
    kernel: str, param_grid: Mapping[str, Sequence[Any]] | None, class_weight: Any, n_features: int
) -> dict[str, list[Any]]:
    """Complete the grid: defaults, and the class weights to search.

    Notes
    -----
    The default grid suits standardised features: C from 1e-5 to 0.1 for the linear kernel; C from 0.1 to 100 and
    gamma of 0.1, 0.3 and 1 over the number of features for the rbf kernel.
    """
    defaults: dict[str, list[Any]] = {"C": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]}
    if kernel == "rbf":
        defaults = {"C": [0.1, 1.0, 10.0, 100.0], "gamma": [factor / n_features for factor in (0.1, 0.3, 1.0)]}
    given = dict(param_grid or {})
    unknown = sorted(set(given) - set(PARAMETERS[kernel]))
    if unknown:
        msg = f"param_grid names {unknown[0]!r}: the {kernel} kernel has {', '.join(PARAMETERS[kernel])}"
        raise UsageError(msg)
    grid = {name: list(np.ravel(given.get(name, values)).tolist()) for name, values in defaults.items()}
    for name, values in grid.items():
        wrong = [v for v in values if not (v == "scale" and name == "gamma") and not _is_positive(v)]
        if wrong or not values:
            msg = (
                f"param_grid[{name!r}] holds {wrong[0]!r}: use numbers above 0"
                if wrong
                else f"param_grid[{name!r}] is empty"
            )
            raise UsageError(msg)
    grid["class_weight"] = list(class_weight) if isinstance(class_weight, list | tuple) else [class_weight]
    return grid


def check_class_weights(weights: Sequence[Any], classes: Sequence[Any]) -> None:
    """Refuse a class weight that is not "balanced", None, or positive numbers for known classes."""
    for weight in weights:
        if weight is None or weight == "balanced":
            continue
        if not isinstance(weight, Mapping):
            msg = f"class_weight is {weight!r}: use 'balanced', None, {{label: weight}}, or a list of these to search"
            raise UsageError(msg)
        unknown = [label for label in weight if label not in set(classes)]
        if unknown:
            msg = f"class_weight names {unknown[0]!r}: the classes are {list(classes)}"
            raise UsageError(msg)
        if not all(_is_positive(w) for w in weight.values()):
            msg = f"class_weight is {weight!r}: weights are numbers above 0"
            raise UsageError(msg)


class Score:
    """Scorer of one fit: the user's score, and whether the SVM converged."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer

    def __call__(self, estimator: Any, X: Any, y: Any) -> dict[str, float]:
        """Score an estimator on the rows of one fold's test part."""
        return {"score": self.scorer(estimator, X, y), "converged": float(converged(estimator))}


def converged(pipeline: Pipeline) -> bool:
    """Whether every SVM in a fitted pipeline reached its tolerance."""
    last = pipeline[-1]
    if isinstance(last, ViewsClassifier):
        return converged(last.estimator_)
    if isinstance(last, LateFusionClassifier):
        return all(converged(estimator) for estimator in last.estimators_)
    return bool(last.n_iter_ < last.max_iter) if isinstance(last, LinearSVC) else last.fit_status_ == 0


def grid_search(
    pipeline: Pipeline,
    grid: Mapping[str, Sequence[Any]],
    X: np.ndarray,
    y: np.ndarray,
    folds: Sequence[Fold],
    scoring: Any,
    n_jobs: int | None,
) -> tuple[Pipeline, dict[str, Any], pd.DataFrame]:
    """Fit every candidate on every fold, and the best on all rows.

    Returns
    -------
    pipeline : Pipeline
        Fitted on all rows at the best parameters.
    best_params : dict
    cv_results : pandas.DataFrame
        One row per candidate: its parameters, mean and std of the score, the
        score of each fold, ``converged`` on every fold, ``at_edge`` of the grid
        (names of the parameters), seconds of one fit, rank.
    """
    prefix = svm_prefix(pipeline)
    search = GridSearchCV(
        pipeline,
        {prefix + name: list(values) for name, values in grid.items()},
        scoring=Score(check_scoring(pipeline, scoring)),
        refit="score",
        cv=list(folds),
        n_jobs=n_jobs,
        error_score="raise",
    )
    with warnings.catch_warnings():
        # Convergence is reported for each cell of the result table instead.
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(X, y)
    best = {name.removeprefix(prefix): value for name, value in search.best_params_.items()}
    return search.best_estimator_, best, _result_table(search.cv_results_, grid, prefix, len(folds))


def _result_table(
    results: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], prefix: str, n_folds: int
) -> pd.DataFrame:
    params = [{name: p[prefix + name] for name in grid} for p in results["params"]]
    table = pd.DataFrame(
        {name: pd.Series([p[name] for p in params], dtype=None if name != "class_weight" else object) for name in grid}
    )
    table["mean"], table["std"] = results["mean_test_score"], results["std_test_score"]
    for fold in range(n_folds):
        table[f"fold{fold}"] = results[f"split{fold}_test_score"]
    table["converged"] = results["mean_test_converged"] == 1
    table["at_edge"] = [tuple(edges(p, grid)) for p in params]
    table["fit_seconds"] = results["mean_fit_time"]
    table["rank"] = results["rank_test_score"]
    return table


def edges(params: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> list[str]:
    """Names of the numeric parameters that are the least or the greatest of their grid."""
    numeric = {name: [v for v in values if _is_positive(v)] for name, values in grid.items() if name != "class_weight"}
    return [n for n, values in numeric.items() if len(values) > 1 and params[n] in (min(values), max(values))]


def out_of_fold(
    pipeline: Pipeline, X: np.ndarray, y: np.ndarray, folds: Sequence[Fold], n_jobs: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predict every row by a clone of the pipeline that was not fitted on it.

    Returns
    -------
    predicted : ndarray of shape (n,)
    decision : ndarray of shape (n, n_classes)
        NaN for a row in no fold's test part.
    fold : ndarray of shape (n,), int
        Number of the fold that tested the row; -1 for none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        parts = Parallel(n_jobs=n_jobs)(delayed(_fit_predict)(clone(pipeline), X, y, *fold) for fold in folds)
    predicted = np.empty(len(y), y.dtype)
    decision = np.full((len(y), len(np.unique(y))), np.nan)
    fold_of = np.full(len(y), -1)
    for number, ((_, test), (labels, values)) in enumerate(zip(folds, parts, strict=True)):
        predicted[test], decision[test], fold_of[test] = labels, values, number
    return predicted, decision, fold_of


def _fit_predict(
    pipeline: Pipeline, X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    pipeline.fit(X[train], y[train])
    return pipeline.predict(X[test]), class_scores(pipeline.decision_function(X[test]))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(0 < value < np.inf)
