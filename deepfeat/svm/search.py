"""Candidates times folds: one pipeline, one grid, one result table."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import check_scoring
from sklearn.model_selection import GridSearchCV, ParameterGrid
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.parallel import Parallel, delayed

from deepfeat.errors import DataError, UsageError
from deepfeat.evaluation import class_scores
from deepfeat.fusion import AlignedAverage, BlockAverage, LateFusionClassifier, ViewsClassifier
from deepfeat.splits import Fold
from deepfeat.svm.linear_path import Known
from deepfeat.svm.paths import fit_path
from deepfeat.svm.resources import Resources
from deepfeat.svm.threads import in_threads

PARAMETERS = {"linear": ("C",), "rbf": ("C", "gamma")}
LOSSES = ("squared_hinge", "hinge")

#: What solves the problems of each.
ENGINES = {LinearSVC: "newton", SVC: "libsvm on kept kernels"}

#: LinearSVC, or SVC with libsvm's one against one; "auto" is LinearSVC for the linear kernel.
CLASSIFIERS = ("auto", "LinearSVC", "SVC")


def make_pipeline(svm: Any, fusion: str, widths: Sequence[int], n_views: int = 1, views: str | None = None) -> Pipeline:
    """Build the unfitted classifier: views, fusion of the blocks, scaling, SVM.

    Returns
    -------
    sklearn.pipeline.Pipeline
        It takes the blocks side by side, (n, n_views * sum of widths).
    """
    single = _single_view_pipeline(svm, fusion, widths)
    if n_views == 1:
        return single
    if views == "average":
        return Pipeline([("views", BlockAverage([sum(widths)] * n_views)), *single.steps])
    return Pipeline([("views", ViewsClassifier(single, n_views, str(views)))])


def make_svm(kernel: str, loss: str, classifier: str, seed: int) -> LinearSVC | SVC:
    """Build the unfitted SVM.

    Raises
    ------
    UsageError
        If LinearSVC is asked for another kernel than the linear one.
    """
    if kernel == "linear" and classifier != "SVC":
        return LinearSVC(loss=loss, dual="auto", random_state=seed)
    if classifier == "LinearSVC":
        msg = f"classifier='LinearSVC' has no kernel {kernel!r}: use classifier='SVC', or kernel='linear'"
        raise UsageError(msg)
    return SVC(kernel=kernel, decision_function_shape="ovr", cache_size=1000)


def _single_view_pipeline(svm: Any, fusion: str, widths: Sequence[int]) -> Pipeline:
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


def find_svm(pipeline: Pipeline) -> LinearSVC | SVC:
    """The SVM in an unfitted pipeline."""
    return pipeline.get_params()[svm_prefix(pipeline).removesuffix("__")]


def make_grid(
    kernel: str, param_grid: Mapping[str, Sequence[Any]] | str | None, class_weight: Any, n_features: int
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
    if isinstance(param_grid, str) and param_grid != "auto":
        msg = f"param_grid is {param_grid!r}: use 'auto', or a mapping such as {{'C': [0.001, 0.01]}}"
        raise UsageError(msg)
    if not isinstance(param_grid, str | Mapping | None):
        msg = f"param_grid is a {type(param_grid).__name__}: use a mapping such as {{'C': [0.001, 0.01]}}, or 'auto'"
        raise UsageError(msg)
    given = {} if isinstance(param_grid, str) else dict(param_grid or {})
    unknown = sorted(set(given) - set(PARAMETERS[kernel]))
    if unknown:
        msg = f"param_grid names {unknown[0]!r}: the {kernel} kernel has {', '.join(PARAMETERS[kernel])}"
        raise UsageError(msg)
    grid = {name: _as_list(given.get(name, values)) for name, values in defaults.items()}
    for name, values in grid.items():
        wrong = [v for v in values if not (v == "scale" and name == "gamma") and not _is_positive(v)]
        if wrong or not values:
            msg = (
                f"param_grid[{name!r}] holds {wrong[0]!r}: use numbers above 0"
                if wrong
                else f"param_grid[{name!r}] is empty"
            )
            raise UsageError(msg)
    weights = list(class_weight) if isinstance(class_weight, list | tuple) else [class_weight]
    grid["class_weight"] = [_as_plain(weight) for weight in weights]
    return grid


def _as_list(values: Any) -> list[Any]:
    """One value or several, as numbers of Python."""
    several = [values] if isinstance(values, str) or np.ndim(values) == 0 else list(values)
    return [_as_plain(value) for value in several]


def _as_plain(value: Any) -> Any:
    """A value, or a mapping of them, as Python has it: files of classifiers hold no numbers of NumPy."""
    if isinstance(value, Mapping):
        return {_as_plain(key): _as_plain(inner) for key, inner in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def check_class_weights(weights: Sequence[Any], classes: Sequence[Any]) -> None:
    """Refuse a class weight that is not "balanced", None, or positive numbers for known classes."""
    if not weights:
        raise UsageError("class_weight is an empty list: use 'balanced', None, {label: weight}, or a list of these")
    # True is 1 to Python.
    known = {(_is_bool(label), label) for label in classes}
    for weight in weights:
        if weight is None or (isinstance(weight, str) and weight == "balanced"):
            continue
        if not isinstance(weight, Mapping):
            shown = repr(weight) if isinstance(weight, str | int | float) else f"a {type(weight).__name__}"
            msg = f"class_weight is {shown}: use 'balanced', None, {{label: weight}}, or a list of these to search"
            raise UsageError(msg)
        unknown = [label for label in weight if (_is_bool(label), label) not in known]
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


class Search(NamedTuple):
    """What a search found.

    Attributes
    ----------
    pipeline : Pipeline
        Fitted on all rows at the best parameters.
    best_params : dict
    cv_results : pandas.DataFrame
        One row per candidate: its parameters, mean and std of the score, the score of each fold,
        ``converged`` on every fold, ``gap`` (largest duality gap over objective, NaN where the engine does not tell),
        ``at_edge`` of the grid (names of the parameters), rank.
    engine : str
        What did the work.
    out_of_fold : tuple of ndarray
        Predictions of shape (n,), decision values of shape (n, n_classes) with NaN for a row in no fold's test part,
        and the number of the fold that tested each row, -1 for none; at the best parameters.
    """

    pipeline: Pipeline
    best_params: dict[str, Any]
    cv_results: pd.DataFrame
    engine: str
    out_of_fold: tuple[np.ndarray, np.ndarray, np.ndarray]


class FoldScores(NamedTuple):
    """What was found on one fold.

    Attributes
    ----------
    scores, gaps, converged : sequence of n_candidates
    outcomes : list of (predicted, decision)
        Of the test part, for each candidate.
    """

    scores: Sequence[float]
    gaps: np.ndarray
    converged: np.ndarray
    outcomes: list[tuple[np.ndarray, np.ndarray]]


class _Decided(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that has decided already, for scorers."""

    def __init__(self, classes: np.ndarray, decision: np.ndarray, predicted: np.ndarray) -> None:
        self.classes_, self._decision, self._predicted = classes, decision, predicted

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the decision values."""
        return self._decision

    def predict(self, X: Any) -> np.ndarray:
        """Return the predicted classes."""
        return self._predicted


def refuse_scorer(scoring: Any, y: np.ndarray, folds: Sequence[Fold]) -> None:
    """Refuse a scorer by its name that cannot score an SVM on these classes, before there is anything to score.

    Raises
    ------
    UsageError
        With what the scorer says of a classifier that is always right.
    DataError
        If it says so where the test part of a fold has no image of a class.
    """
    if not isinstance(scoring, str):
        return
    classes = np.unique(y)
    reason = _reason_against(scoring, classes, np.tile(classes, 2))
    if reason is not None:
        msg = (
            f"scoring is {scoring!r}, which cannot score the decisions of an SVM on {len(classes)} classes ({reason}): "
            "use one such as 'balanced_accuracy' or 'f1_macro'; those of a single class need positive="
        )
        raise UsageError(msg)
    asked = {tuple(classes.tolist())}
    for number, (_, test) in enumerate(folds):
        present = tuple(np.unique(y[test]).tolist())
        reason = None if present in asked else _reason_against(scoring, classes, y[test])
        asked.add(present)
        if reason is not None:
            absent = np.setdiff1d(classes, y[test])
            msg = (
                f"scoring is {scoring!r}, which cannot score fold {number}, whose test part has no image of the class "
                f"{str(absent[0])!r} ({reason}): use stratified folds, or another scoring"
            )
            raise DataError(msg)


def _reason_against(scoring: str, classes: np.ndarray, truth: np.ndarray) -> str | None:
    """What a scorer says where it cannot score a classifier that is always right."""
    values = np.eye(len(classes))[np.searchsorted(classes, truth)]
    decision = values if len(classes) > 2 else values[:, 1] - values[:, 0]
    try:
        with warnings.catch_warnings():
            # Of scores that are not defined, which the search refuses, or takes as scikit-learn does.
            warnings.simplefilter("ignore")
            check_scoring(LinearSVC(), scoring)(_Decided(classes, decision, truth), decision, truth)
    except (ValueError, TypeError, AttributeError) as error:
        return str(error).splitlines()[0].rstrip(".")
    return None


def exact_search(
    pipeline: Pipeline,
    grid: Mapping[str, Sequence[Any]],
    X: np.ndarray,
    y: np.ndarray,
    folds: Sequence[Fold],
    scoring: Any,
    use: Resources,
    *,
    extend: bool = False,
    refit: str = "auto",
) -> Search:
    """Score every candidate on every fold, all candidates of a fold at once, and fit the best on all rows.

    Parameters
    ----------
    extend : bool
        Whether to widen the grid as long as the best value is at its edge, up to `LIMITS`.
    refit : {"auto", "sklearn"}
        Whether the pipeline is fitted by the engine, or by scikit-learn, as it is where the engine did not converge.
    """
    scores = (Scores if use.elsewhere is None else _SpreadScores)(pipeline, X, y, folds, scoring, use)
    best, grid = scores.search(grid, extend=extend)
    fitted = fit_best(pipeline, X, y, best, use, refit)
    engine = ENGINES[type(find_svm(pipeline))]
    return Search(fitted, best, scores.table(grid), engine, scores.out_of_fold())


def fit_best(
    pipeline: Pipeline, X: np.ndarray, y: np.ndarray, best: Mapping[str, Any], use: Resources, refit: str
) -> Pipeline:
    """Fit a pipeline on all rows, by the engine or as `exact_search` says."""
    path = None if refit == "sklearn" else fit_path(pipeline, X.copy(), y, [best], use)
    if path is not None and path.converged.all():
        fitted: Pipeline = path.estimator(0)
        return fitted
    prefix = svm_prefix(pipeline)
    return clone(pipeline).set_params(**{prefix + name: value for name, value in best.items()}).fit(X, y)


class Scores:
    """Scores of candidates on folds, to which more candidates can be added.

    Parameters
    ----------
    pipeline, X, y, folds, scoring, use
        As of `exact_search`.
    """

    def __init__(self, pipeline: Pipeline, X: Any, y: Any, folds: Sequence[Fold], scoring: Any, use: Resources) -> None:
        self._pipeline, self._X, self._y, self._folds = pipeline, X, y, folds
        self._scorer, self._use = check_scoring(pipeline, scoring), use
        # A scorer that has a name asks for predictions and decisions alone; another may look at the estimator.
        self._decided = isinstance(scoring, str)
        self.candidates: list[dict[str, Any]] = []
        self._scores = np.empty((0, len(folds)))
        self._gaps, self._converged = np.empty((0, len(folds))), np.empty((0, len(folds)), bool)
        self._outcomes: list[list[tuple[np.ndarray, np.ndarray]]] = []

    def search(
        self, grid: Mapping[str, Sequence[Any]], *, extend: bool
    ) -> tuple[dict[str, Any], Mapping[str, Sequence[Any]]]:
        """Score a grid, widened as long as its best value is at its edge where that is wanted.

        Returns
        -------
        best : dict
            Parameters of the first candidate with the best mean score, in the order of the grid.
        grid : mapping
            With the values that were added.
        """
        self._add(list(ParameterGrid({name: list(values) for name, values in grid.items()})))
        while extend:
            wider = _widened(grid, self.candidates[self._best])
            if wider is None:
                break
            grid, fresh = wider
            self._add(fresh)
        return dict(self.candidates[self._best]), grid

    @property
    def _best(self) -> int:
        return int(self._scores.mean(axis=1).argmax())

    def _add(self, candidates: list[dict[str, Any]]) -> None:
        """Score more candidates on every fold."""
        scores, gaps, converged, outcomes = zip(*self._score_folds(candidates), strict=True)
        self.candidates += candidates
        self._scores = np.vstack([self._scores, np.column_stack(scores)])
        _refuse_undefined(self._scores)
        self._gaps = np.vstack([self._gaps, np.column_stack(gaps)])
        self._converged = np.vstack([self._converged, np.column_stack(converged)])
        self._outcomes += [list(cell) for cell in zip(*outcomes, strict=True)]

    def _score_folds(self, candidates: list[dict[str, Any]]) -> list[FoldScores]:
        return self._score_paths(candidates)

    def _score_paths(self, candidates: list[dict[str, Any]], known: Sequence[Known] | None = None) -> list[FoldScores]:
        """Score every fold by a path, with what is known of each."""
        folds = (
            partial(self.score_fold, *fold, candidates, self._use, None if known is None else known[number])
            for number, fold in enumerate(self._folds)
        )
        return in_threads(folds, self._use.n_jobs, self._use.n_folds)

    def score_fold(
        self,
        train: np.ndarray,
        test: np.ndarray,
        candidates: list[dict[str, Any]],
        use: Resources,
        known: Known | None = None,
    ) -> FoldScores:
        """Fit all candidates on a fold's training part and score them on its test part."""
        path = fit_path(self._pipeline, self._take(train), self._y[train], candidates, use, known)
        classes = np.unique(self._y[train])
        outcomes = [(classes[path.choose(decision)], decision) for decision in path.decision(self._take(test))]
        scores = [self.score(test, classes, *cell, partial(path.estimator, i)) for i, cell in enumerate(outcomes)]
        return FoldScores(scores, path.gaps, path.converged, outcomes)

    def score(
        self,
        test: np.ndarray,
        classes: np.ndarray,
        predicted: np.ndarray,
        decision: np.ndarray,
        make: Callable[[], Any],
    ) -> float:
        """Score predictions and decision values of one fold's test part, or the estimator that is made of them."""
        # What has been decided needs no features.
        estimator = _Decided(classes, decision, predicted) if self._decided else make()
        return float(self._scorer(estimator, decision if self._decided else self._take(test), self._y[test]))

    def _take(self, rows: np.ndarray) -> np.ndarray:
        taken: np.ndarray = self._X[rows]
        return taken

    def table(self, grid: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
        """Return one row per candidate, see `Search`."""
        table = _parameter_columns(self.candidates, grid)
        table["mean"], table["std"] = self._scores.mean(axis=1), self._scores.std(axis=1)
        for fold, scores in enumerate(self._scores.T):
            table[f"fold{fold}"] = scores
        table["converged"] = self._converged.all(axis=1)
        table["gap"] = self._gaps.max(axis=1)
        table["at_edge"] = [tuple(edges(candidate, grid)) for candidate in self.candidates]
        table["rank"] = table["mean"].rank(method="min", ascending=False).astype(int)
        return table

    def out_of_fold(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return predictions, decision values and folds at the best candidate, see `Search`."""
        parts = [(predicted, class_scores(decision)) for predicted, decision in self._outcomes[self._best]]
        return _pool(self._y, self._folds, parts)


class _SpreadScores(Scores):
    """Scores of which workers of a cluster find each fold's blocks of candidates."""

    def __init__(self, pipeline: Pipeline, X: Any, y: Any, folds: Sequence[Fold], scoring: Any, use: Resources) -> None:
        super().__init__(pipeline, X, y, folds, scoring, use)
        self._score_cell = partial(_score_cell, pipeline, scoring)

    def _score_folds(self, candidates: list[dict[str, Any]]) -> list[FoldScores]:
        assert self._use.elsewhere is not None
        blocks = _independent(candidates)
        cells = [(*fold, [candidates[i] for i in block]) for fold in self._folds for block in blocks]
        found = iter(self._use.elsewhere(self._score_cell, cells))
        order = np.argsort(np.concatenate(blocks))
        return [_join(list(itertools.islice(found, len(blocks))), order) for _ in self._folds]


def _score_cell(
    pipeline: Pipeline,
    scoring: Any,
    X: np.ndarray,
    y: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    candidates: list[dict[str, Any]],
    use: Resources,
) -> FoldScores:  # pragma: no cover - on workers
    return Scores(pipeline, X, y, [(train, test)], scoring, use).score_fold(train, test, candidates, use)


def _independent(candidates: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Numbers of the candidates in blocks that share nothing: a path of C is followed as a whole."""
    blocks: dict[str, list[int]] = {}
    for number, candidate in enumerate(candidates):
        others = repr(sorted((name, value) for name, value in candidate.items() if name != "C"))
        blocks.setdefault(others, []).append(number)
    return list(blocks.values())


def _join(blocks: Sequence[FoldScores], order: np.ndarray) -> FoldScores:
    """Put the candidates of several blocks into one order."""
    scores, gaps, converged = (np.concatenate(parts)[order] for parts in list(zip(*blocks, strict=True))[:3])
    outcomes = [outcome for block in blocks for outcome in block.outcomes]
    return FoldScores(scores.tolist(), gaps, converged, [outcomes[i] for i in order])


#: How far a grid is widened.
LIMITS = {"C": (1e-9, 1e6), "gamma": (1e-12, 1e3)}


def _widened(
    grid: Mapping[str, Sequence[Any]], best: Mapping[str, Any]
) -> tuple[dict[str, list[Any]], list[dict[str, Any]]] | None:
    """Add a value beyond each edge that the best candidate is at; the wider grid and its new candidates, or None."""
    wider = {name: list(values) for name, values in grid.items()}
    for name in edges(best, grid):
        values = sorted(v for v in grid[name] if _is_positive(v))
        step = values[1] / values[0]
        beyond = values[0] / step if best[name] == values[0] else values[-1] * step
        if LIMITS[name][0] <= beyond <= LIMITS[name][1]:
            wider[name].append(float(f"{beyond:.6g}"))
    if wider == dict(grid):
        return None
    old = [repr(sorted(candidate.items())) for candidate in ParameterGrid(dict(grid))]
    fresh = [c for c in ParameterGrid(wider) if repr(sorted(c.items())) not in old]
    return wider, fresh


def grid_search(
    pipeline: Pipeline,
    grid: Mapping[str, Sequence[Any]],
    X: np.ndarray,
    y: np.ndarray,
    folds: Sequence[Fold],
    scoring: Any,
    n_jobs: int | None,
    *,
    extend: bool = False,
) -> Search:
    """Let scikit-learn fit every candidate on every fold, and the best on all rows: the reference for the engine.

    Parameters
    ----------
    extend : bool
        As of `exact_search`; each time everything is fitted anew.
    """
    prefix = svm_prefix(pipeline)
    tried = [{prefix + name: list(values) for name, values in grid.items()}]
    while True:
        search = GridSearchCV(
            pipeline,
            tried,
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
        wider = _widened(grid, best) if extend else None
        if wider is None:
            break
        grid, fresh = wider
        tried += [{prefix + name: [value] for name, value in candidate.items()} for candidate in fresh]
    fitted = search.best_estimator_
    table = _result_table(search.cv_results_, grid, prefix, len(folds))
    return Search(fitted, best, table, "sklearn", out_of_fold(fitted, X, y, folds, n_jobs))


def _result_table(
    results: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], prefix: str, n_folds: int
) -> pd.DataFrame:
    params = [{name: p[prefix + name] for name in grid} for p in results["params"]]
    table = _parameter_columns(params, grid)
    table["mean"], table["std"] = results["mean_test_score"], results["std_test_score"]
    for fold in range(n_folds):
        table[f"fold{fold}"] = results[f"split{fold}_test_score"]
    _refuse_undefined(table[[f"fold{fold}" for fold in range(n_folds)]].to_numpy())
    table["converged"] = results["mean_test_converged"] == 1
    table["gap"] = np.nan
    table["at_edge"] = [tuple(edges(p, grid)) for p in params]
    table["rank"] = results["rank_test_score"]
    return table


def _refuse_undefined(scores: np.ndarray) -> None:
    """Refuse scores, of shape (n_candidates, n_folds), among which there is no best one."""
    undefined = np.flatnonzero(~np.isfinite(scores).all(axis=0))
    if len(undefined):
        msg = (
            f"the score is not defined on fold {undefined[0]}, as where its test part has no image of a class: "
            "use stratified folds, or another scoring"
        )
        raise DataError(msg)


def _parameter_columns(params: Sequence[Mapping[str, Any]], grid: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        {name: pd.Series([p[name] for p in params], dtype=None if name != "class_weight" else object) for name in grid}
    )


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
    return _pool(y, folds, parts)


def _pool(
    y: np.ndarray, folds: Sequence[Fold], parts: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put the predictions and decision values of each fold's test rows in their places."""
    predicted = np.zeros(len(y), y.dtype)
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


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(0 < value < np.inf)
