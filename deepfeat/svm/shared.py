"""The search of `deepfeat.svm.search` for LinearSVC, where all folds and classes share their passes over the rows.

Where memory is short, that is how all values of C are solved. Otherwise it is for values so small that few passes are
enough; the engine with matrices of its own for each problem goes on from where they end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_class_weight
from threadpoolctl import threadpool_limits

from deepfeat.splits import Fold
from deepfeat.svm.gram import split_columns
from deepfeat.svm.linear_path import CONVERGED, Known, leading_directions
from deepfeat.svm.paths import by_weight, greatest, one_against_the_rest
from deepfeat.svm.resources import Resources
from deepfeat.svm.search import ENGINES, FoldScores, Scores, Search, converged, fit_best
from deepfeat.svm.streaming import Columns, Scaled, Solution, Stream, make_columns
from deepfeat.svm.systems import FEW, Gram

#: Passes are shared up to this mean eigenvalue of a loss's second derivatives, for each problem that shares them,
#: and for however many there are: beyond, the systems take so many passes that factors are made sooner.
_EACH, _AT_MOST = 2.0, 20.0

#: Features, in numbers of values, below which sharing saves nothing.
_LEAST = 1_000_000


def can_stream(pipeline: Pipeline) -> bool:
    """Whether passes can serve a classifier: scaling and LinearSVC with the squared hinge loss."""
    kinds = [type(step) for _, step in pipeline.steps]
    return kinds == [StandardScaler, LinearSVC] and pipeline[-1].loss == "squared_hinge"


def pays_to_share(n: int, d: int) -> bool:
    """Whether sharing passes over n rows of d features is faster than a compression of the rows of each fold."""
    return n >= d and n * d >= _LEAST


def shared_search(
    pipeline: Pipeline,
    grid: Mapping[str, Sequence[Any]],
    X: np.ndarray,
    y: np.ndarray,
    rows: np.ndarray,
    folds: Sequence[Fold],
    scoring: Any,
    use: Resources,
    *,
    extend: bool = False,
    refit: str | None = None,
) -> Search:
    """Score every candidate on every fold, all folds and classes in the same passes, and fit the best on all rows.

    Parameters
    ----------
    pipeline : Pipeline
        One that `can_stream`.
    X : ndarray of shape (n, d)
        Of all rows, in memory or mapped from a file.
    y : ndarray of shape (len(rows),)
    rows : ndarray of int
        Training rows.
    folds : sequence of (train, test)
        Numbers within ``rows``.
    grid, scoring, use, extend
        As of `deepfeat.svm.search.exact_search`.
    refit : {"auto", "sklearn"}, optional
        As of `deepfeat.svm.search.exact_search`, with memory for it; None where rows are to be read in blocks.
    """
    scores = _SharedScores(pipeline, X, y, rows, folds, scoring, use, keep=refit is not None)
    best, grid = scores.search(grid, extend=extend)
    fitted = None
    if refit is None or (refit == "auto" and scores.are_easy(best)):
        fitted = scores.fit(best)
    if refit is not None and (fitted is None or not converged(fitted)):
        fitted = fit_best(pipeline, X[rows], y, best, use, refit)
    engine = "newton in blocks of rows" if refit is None else ENGINES[LinearSVC]
    return Search(fitted, best, scores.table(grid), engine, scores.out_of_fold())


class _SharedScores(Scores):
    """Scores of which each value of C is solved from the one before, on all folds at once."""

    def __init__(
        self,
        pipeline: Pipeline,
        X: np.ndarray,
        y: np.ndarray,
        rows: np.ndarray,
        folds: Sequence[Fold],
        scoring: Any,
        use: Resources,
        *,
        keep: bool,
    ) -> None:
        super().__init__(pipeline, X, y, folds, scoring, use)
        self._rows, self._keep = rows, keep
        self._classes, codes = np.unique(y, return_inverse=True)
        self._codes = np.zeros(len(X), int)
        self._codes[rows] = codes
        # The last is for the final fit.
        self._trains = [*(train for train, _ in folds), np.arange(len(rows))]
        inside = np.zeros((len(X), len(self._trains)), np.float32)
        for fold, train in enumerate(self._trains):
            np.add.at(inside[:, fold], rows[train], 1)
        products = None if not keep else lambda kept: use.products.moment(split_columns(kept, use.widths))
        self._stream = Stream(X, self._codes, inside, use.n_jobs, keep=products)
        self._solved: dict[str, np.ndarray] = {}
        self._columns: dict[str, Columns] = {}

    @property
    def _is_compressed(self) -> bool:
        """Whether a fold has fewer rows than features and an intercept, see `deepfeat.svm.linear_path`."""
        return bool(min(len(train) for train, _ in self._folds) <= self._X.shape[1])

    def _problems(self, weight: Any) -> Columns:
        """Those of all folds and of the final fit, for a class weight; the same for every C."""
        if repr(weight) not in self._columns:
            self._columns[repr(weight)] = self._make_problems(weight)
        return self._columns[repr(weight)]

    def _make_problems(self, weight: Any) -> Columns:
        codes, numbers = self._codes[self._rows], np.arange(len(self._classes))
        each = [
            compute_class_weight(weight, classes=self._classes, y=self._classes[codes[train]]) for train in self._trains
        ]
        tables = [one_against_the_rest(numbers, len(numbers), weights) for weights in each]
        return make_columns(tables[0][0], [costs for _, costs in tables])

    def are_easy(self, candidate: Mapping[str, Any]) -> bool:
        """Whether few passes are enough."""
        columns = self._problems(candidate["class_weight"])
        # Features have a variance of 1, so that the mean eigenvalue of the sum of cost x xᵀ is the sum of costs; where
        # there are more rows than features, the active ones among them differ from all the less.
        costs = columns.costs[:, self._codes[self._rows]].mean()
        eigenvalue = 2 * candidate["C"] * costs * self._X.shape[1]
        return bool(eigenvalue <= min(_EACH * len(columns.fold), _AT_MOST))

    def _score_folds(self, candidates: list[dict[str, Any]]) -> list[FoldScores]:
        found = [_Cells(len(candidates)) for _ in self._folds]
        for weight, some in by_weight(candidates):
            columns = self._problems(weight)
            columns = columns.take(columns.fold < len(self._folds))
            order = sorted(some, key=lambda i: candidates[i]["C"])
            easy = [i for i in order if not self._keep or self.are_easy(candidates[i])]
            solution, coef = None, np.zeros((len(columns.fold), self._X.shape[1] + 1))
            for index in easy:
                solution = self._stream.solve(columns, candidates[index]["C"], coef)
                coef = self._solved[repr(candidates[index])] = solution.coef
                self._score_solution(columns, solution, candidates, index, found)
            later = order[len(easy) :]
            if later:
                known = self._known(columns, solution, candidates[later[0]]["C"])
                for cells, scores in zip(found, self._score_paths([candidates[i] for i in later], known), strict=True):
                    cells.fill(later, scores)
        return [cells.result() for cells in found]

    def _score_solution(
        self,
        columns: Columns,
        solution: Solution,
        candidates: Sequence[Mapping[str, Any]],
        index: int,
        found: Sequence[_Cells],
    ) -> None:
        for fold, (_, test) in enumerate(self._folds):
            mine = columns.fold == fold
            decision = solution.decision[self._rows[test]][:, mine].astype(float)
            decision = decision[:, 0] if decision.shape[1] == 1 else decision
            cell = self._classes[greatest(decision)], decision
            make = partial(
                self._pipeline_of,
                candidates[index],
                self._stream.folds[fold],
                solution.coef[mine],
                _count_steps(solution, mine, self._pipeline[-1]),
            )
            gap = solution.gap[mine].max()
            score = self.score(test, self._classes, *cell, make)
            found[fold].fill([index], FoldScores([score], np.array([gap]), np.array([gap <= CONVERGED]), [cell]))

    def _known(self, columns: Columns, solution: Solution | None, C: float) -> list[Known]:
        """What passes tell of each fold's training rows, for paths that begin at a value of C."""
        directions = leading_directions(self._stream.mean_product)
        gram = Gram(self._stream.rows)
        before, coef = 0.0, None
        if solution is not None:
            before, (coef, active) = solution.C, self._advance(columns, solution, C)
            # Compressed folds have products of their own.
            if not self._is_compressed:
                with threadpool_limits(self._use.n_jobs, "blas"):
                    gram.fill(np.flatnonzero(active[:, self._have_few(active)].any(axis=1)))
        known = []
        for fold, (train, _) in enumerate(self._folds):
            start = None if coef is None else coef[columns.fold == fold]
            products = partial(_products, gram, self._rows[train], *self._stream.centred(fold))
            known.append(Known(before, start, products, directions, _fitted_scaler(self._stream.folds[fold])))
        return known

    def _advance(self, columns: Columns, solution: Solution, C: float) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and active rows a step from a solution towards that for the next C, where many rows are active.

        Mostly far fewer are after it, so that a matrix for this step of each problem would take many rows and soon be
        of no use.
        """
        coef, active = solution.coef.copy(), solution.active.copy()
        many = ~self._have_few(active)
        if many.any():
            coef[many], active[:, many] = self._stream.step(columns.take(many), C, coef[many])
        return coef, active

    def _have_few(self, active: np.ndarray) -> np.ndarray:
        """Whether each problem's system is that of its active rows, see `deepfeat.svm.systems`."""
        few: np.ndarray = active.sum(axis=0) <= FEW * (self._X.shape[1] + 1)
        return few

    def _take(self, rows: np.ndarray) -> np.ndarray:
        taken: np.ndarray = self._X[self._rows[rows]]
        return taken

    def fit(self, candidate: Mapping[str, Any]) -> Pipeline:
        """Fit the pipeline on all rows, from the mean of what the folds have found."""
        start = self._solved[repr(dict(candidate))]
        start = start.reshape(len(self._folds), -1, start.shape[1]).mean(axis=0)
        columns = self._problems(candidate["class_weight"])
        columns = columns.take(columns.fold == len(self._folds))
        found = self._stream.solve(columns, candidate["C"], start)
        steps = _count_steps(found, slice(None), self._pipeline[-1])
        return self._pipeline_of(candidate, self._stream.folds[-1], found.coef, steps)

    def _pipeline_of(self, candidate: Mapping[str, Any], scaled: Scaled, coef: np.ndarray, steps: int) -> Pipeline:
        (scale, _), (last, svm) = self._pipeline.steps
        fitted = clone(svm).set_params(C=candidate["C"], class_weight=candidate["class_weight"])
        fitted.coef_, fitted.intercept_ = coef[:, :-1].copy(), coef[:, -1].copy()
        fitted.classes_, fitted.n_features_in_ = self._classes, len(scaled.mean)
        fitted.n_iter_ = steps
        return Pipeline([(scale, _fitted_scaler(scaled)), (last, fitted)])


def _count_steps(solution: Solution, some: Any, svm: LinearSVC) -> int:
    """Steps of the problem that took most; as many as an SVM may take, if one of them did not converge."""
    return int(solution.steps[some].max()) if solution.gap[some].max() <= CONVERGED else svm.max_iter


def _fitted_scaler(scaled: Scaled) -> StandardScaler:
    scaler = StandardScaler()
    scaler.mean_, scaler.var_, scaler.scale_ = scaled.mean, scaled.variance, scaled.scale
    scaler.n_samples_seen_, scaler.n_features_in_ = scaled.n, len(scaled.mean)
    return scaler


def _products(
    gram: Gram, rows: np.ndarray, away: np.ndarray, square: float, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Products of a fold's rows when they are centred and end in a one, but in the scale of all rows together."""
    found = gram.of(rows[left], rows[right])
    found -= away[rows[left], None]
    found += (1 + square - away[rows[right]]).astype(found.dtype)
    return found


class _Cells:
    """What is found on one fold, candidate by candidate."""

    def __init__(self, n_candidates: int) -> None:
        self._cells: list[Any] = [None] * n_candidates

    def fill(self, places: Sequence[int], scores: FoldScores) -> None:
        """Put candidates into their places."""
        for place, *cell in zip(places, *scores, strict=True):
            self._cells[place] = cell

    def result(self) -> FoldScores:
        """Return all of them."""
        scores, gaps, converged, outcomes = zip(*self._cells, strict=True)
        return FoldScores(list(scores), np.array(gaps), np.array(converged), list(outcomes))
